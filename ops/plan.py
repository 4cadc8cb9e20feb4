"""natix-fleet plan: which model sits where, what it takes there, and whether this host has it."""

import os
from collections.abc import Iterable, Sequence

import click
import msgspec
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from configs.errors import ConfigError
from configs.memory import Device, Load, Need, host_bytes, loads, shown
from configs.profile import Profile
from ops.models import console_of
from ops.report_text import LOG_WIDTH
from workers.gpus import Gpu, gpus

#: Two cards of one name differ by what their firmware keeps: this share less is still the same card.
TOLERANCE = 0.02

#: Columns below which a table is set tightly, and "-" under asleep alone says that a tier is resident.
NARROW = 100


class DevicePlan(Struct, frozen=True):
    """One device: what it has, the most that is awake there at once, and who is there."""

    name: str
    memory_bytes: int
    usable_bytes: int
    needed_bytes: int
    tiers: tuple[Need, ...]


class Plan(Struct, frozen=True):
    """A profile on its devices."""

    profile: str
    devices: tuple[DevicePlan, ...]
    #: 0: the profile does not say.
    host_memory_bytes: int
    host_needed_bytes: int
    #: Tiers on no device of the list.
    elsewhere: tuple[str, ...]


def make_plan(profile: Profile) -> Plan:
    """The plan of a profile that load_profile accepted: it fits."""
    found = loads(profile, profile.models())
    placed = {need.tier for load in found for need in load.needs}
    return Plan(
        profile=profile.name,
        devices=tuple(_device_plan(load) for load in found),
        host_memory_bytes=profile.host_memory_bytes,
        host_needed_bytes=host_bytes(found),
        elsewhere=tuple(tier.name for tier in profile.tiers if tier.name not in placed),
    )


def _device_plan(load: Load) -> DevicePlan:
    return DevicePlan(load.device.name, load.device.memory_bytes, load.usable_bytes, load.needed_bytes, load.needs)


def print_plan(profile: Profile, *, as_json: bool, check: bool) -> None:
    """Prints the plan.

    Args:
        profile: as load_profile gave it.
        as_json: for machines.
        check: compare with what this host has.

    Raises:
        ConfigError: the host has less than the profile says.
    """
    plan = make_plan(profile)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(plan), indent=2).decode())
    else:
        _print(plan, profile)
    if check:
        for problem in missing(profile, devices(gpus()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            raise ConfigError(f"profile {profile.name!r}: {problem}")
        if not as_json:
            click.echo(_checked(profile))


def _checked(profile: Profile) -> str:
    """What a check that found nothing missing has shown."""
    if profile.devices:
        return "this host has all of it"
    if profile.host_memory_bytes:
        return f"this host has {shown(profile.host_memory_bytes)} of memory; the profile lists no [[devices]] to check"
    return "nothing to check: the profile lists no [[devices]] and no host_memory_bytes"


def _print(plan: Plan, profile: Profile) -> None:
    console = console_of(LOG_WIDTH)
    narrow = console.width < NARROW
    for device in plan.devices:
        title = (
            f"{device.name}: needs {shown(device.needed_bytes)} of {shown(device.usable_bytes)} "
            f"({shown(device.memory_bytes)} in all)"
        )
        # Names are typed again, so they are never cut; a precision may stand below its model.
        words = [word for need in device.tiers for model in need.models for word in model.split()]
        tier = Column("tier", no_wrap=True, min_width=_widest(need.tier for need in device.tiers))
        table = Table(tier, Column("models", min_width=_widest(words)), title=title, box=SIMPLE_HEAD)
        for name in ("weights", "awake", "asleep", "host") if narrow else ("", "weights", "awake", "asleep", "host"):
            table.add_column(name)
        table.title_justify = "left"
        if narrow:
            table.padding = 0
        for need in device.tiers:
            sleeps = () if narrow else ("sleeps" if need.sleeps else "resident",)
            asleep = shown(need.asleep_bytes) if need.sleeps else "-"
            sizes = (shown(need.weight_bytes), shown(need.awake_bytes), asleep, shown(need.host_bytes))
            table.add_row(need.tier, "\n".join(need.models), *sleeps, *sizes)
        console.print(table)
    if plan.devices:
        of = f" of {shown(plan.host_memory_bytes)}" if plan.host_memory_bytes else ""
        console.print(f"host memory: needs {shown(plan.host_needed_bytes)}{of}")
        if any(need.sleeps for device in plan.devices for need in device.tiers):
            console.print("of those that sleep at most one is awake on a device at a time")
    for line in uncounted(plan, profile):
        console.print(line)


def uncounted(plan: Plan, profile: Profile) -> list[str]:
    """A sentence on the tiers of the CPU, and one on those of a device that the profile does not list."""
    there = {tier.name for tier in profile.tiers if tier.device == "cpu"}
    on_cpu = [name for name in plan.elsewhere if name in there]
    unlisted = [name for name in plan.elsewhere if name not in there]
    lines = []
    if on_cpu:
        run = "tiers run" if len(on_cpu) > 1 else "tier runs"
        lines.append(f"the {run} on the CPU, so no GPU memory to count: {', '.join(on_cpu)}")
    if unlisted:
        lines.append(f"not counted, as the profile lists no [[devices]]: {', '.join(unlisted)}")
    return lines


def _widest(words: Iterable[str]) -> int:
    return max(map(len, words), default=0)


def missing(profile: Profile, here: dict[str, Device], host_memory_bytes: int) -> list[str]:
    """What a host lacks of what a profile says that it has.

    Args:
        profile: with its devices.
        here: the host's GPUs, each by its index and by its UUID.
        host_memory_bytes: the host's own.
    """
    lacks = []
    for device in profile.devices:
        found = here.get(device.name)
        if found is None:
            lacks.append(f"{device.name}: no such GPU here (there are: {', '.join(here) or 'none'})")
        elif found.memory_bytes < (1 - TOLERANCE) * device.memory_bytes:
            lacks.append(
                f"{device.name} has {shown(found.memory_bytes)}, the profile says {shown(device.memory_bytes)}"
            )
    if host_memory_bytes < (1 - TOLERANCE) * profile.host_memory_bytes:
        lacks.append(
            f"the host has {shown(host_memory_bytes)} of memory, the profile says {shown(profile.host_memory_bytes)}"
        )
    return lacks


def devices(found: Sequence[Gpu]) -> dict[str, Device]:
    """GPUs as a profile may name them, by index and by UUID; not those without memory of their own."""
    return {
        name: Device(name, gpu.memory_bytes)
        for gpu in found
        if gpu.memory_bytes
        for name in (f"cuda:{gpu.index}", f"cuda:{gpu.uuid}")
    }
