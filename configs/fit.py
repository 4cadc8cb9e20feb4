"""Whether a profile's models fit its devices, and if not, what would."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from configs.errors import ConfigError
from configs.memory import (
    LEAST_ROOM_BYTES,
    USABLE,
    Load,
    device_count,
    devices_of,
    host_bytes,
    least_share,
    loads,
    precision_of,
    served,
    shown,
    weight_bytes,
)
from configs.model import ModelSpec

if TYPE_CHECKING:
    from configs.profile import Profile, Tier

Models = Mapping[str, Sequence[ModelSpec]]

#: Remedies that a refusal names.
MOST_REMEDIES = 2


def problems(profile: "Profile", models: Models) -> Iterator[str]:
    """What is wrong with a profile's devices; nothing is said of one that lists none.

    Args:
        profile: with or without ``devices``.
        models: of each tier, by its name.
    """
    names = [device.name for device in profile.devices]
    for name in names:
        if names.count(name) > 1:
            yield f"devices: {name} stands twice"
    for tier in profile.tiers:
        if tier.device == "cpu" and device_count(tier) > 1 and not tier.server.url:
            yield f"tier {tier.name}: {_split(tier)} is for devices, and a processor is one"
    try:
        wrong = [p for tier in profile.tiers if tier.device != "cpu" for p in _tier_problems(profile, tier, models)]
        over = [] if wrong else _over(profile, models)
    except ConfigError as error:
        wrong, over = [str(error)], []
    yield from wrong
    if over:
        ways = _remedies(profile, models)
        what = "what would: " + ", or ".join(ways) if ways else "no change of one tier would do"
        yield f"does not fit: {'; '.join(over)}; {what}"


def _tier_problems(profile: "Profile", tier: "Tier", models: Models) -> Iterator[str]:
    where, specs = f"tier {tier.name}", models[tier.name]
    wanted = device_count(tier)
    if wanted > 1 and not served(specs):
        yield f"{where}: {_split(tier)} is for served models, {specs[0].key} runs in the worker"
    elif tier.memory_share and not served(specs):
        yield f"{where}: memory_share is for served models, {specs[0].key} runs in the worker"
    if not profile.devices:
        if wanted > 1:
            yield f"{where}: {_split(tier)} needs the profile's list of devices"
        return
    there = devices_of(tier, profile.devices)
    if not there:
        yield f"{where}: device {tier.device} is not one of the profile's devices"
    elif len(there) < wanted:
        yield f"{where}: {_split(tier)}, but {len(there)} of the devices from {tier.device} on"
    elif served(specs):
        least = max(least_share(tier, specs, device) for device in there)
        if least > USABLE:
            # Figures of the device that is the tightest.
            device = min(there, key=lambda device: device.memory_bytes)
            weights = sum(weight_bytes(spec, precision_of(spec, tier)) for spec in specs) / tier.tensor_parallel
            yield (
                f"{where}: {specs[0].key} does not fit {device.name}: its weights and the least room need "
                f"{shown(weights + LEAST_ROOM_BYTES)} of {shown(USABLE * device.memory_bytes)}; take a lower "
                "precision, a smaller model or a higher tensor_parallel"
            )
        elif tier.memory_share < least:
            yield f"{where}: {specs[0].key} needs memory_share {least:.2f} of {tier.device}, not {tier.memory_share}"


def _split(tier: "Tier") -> str:
    """What makes it ask for several devices, in words."""
    parts = {"tensor_parallel": tier.tensor_parallel, "data_parallel": tier.server.data_parallel}
    return " x ".join(f"{name} {count}" for name, count in parts.items() if count > 1)


def _over(profile: "Profile", models: Models) -> list[str]:
    """What holds less than is asked of it."""
    found = loads(profile, models)
    over = [
        f"{load.device.name} needs {shown(load.needed_bytes)} of {shown(load.usable_bytes)}"
        for load in found
        if load.needed_bytes > load.usable_bytes
    ]
    if 0 < profile.host_memory_bytes < host_bytes(found):
        over.append(f"the host needs {shown(host_bytes(found))} of {shown(profile.host_memory_bytes)}")
    return over


def _remedies(profile: "Profile", models: Models) -> list[str]:
    """Changes of one tier after which all fits, the gentlest first."""
    found = loads(profile, models)
    ways: list[str] = []
    for tier in sorted(profile.tiers, key=lambda tier: -_most_bytes(tier, found)):
        if not _most_bytes(tier, found):
            continue
        for words, changed in _changes(profile, tier, models[tier.name]):
            tiers = tuple(changed if one is tier else one for one in profile.tiers)
            if not _over(replace(profile, tiers=tiers), models):
                ways.append(f"tier {tier.name} {words}")
                break
        if len(ways) == MOST_REMEDIES:
            return ways
    if not ways:
        for tier in profile.tiers:
            rest = tuple(one for one in profile.tiers if one is not tier)
            if not _over(replace(profile, tiers=rest), models):
                return [f"the profile without tier {tier.name}"]
    return ways


def _most_bytes(tier: "Tier", found: Sequence[Load]) -> int:
    return max((need.awake_bytes for load in found for need in load.needs if need.tier == tier.name), default=0)


def _changes(profile: "Profile", tier: "Tier", specs: Sequence[ModelSpec]) -> Iterator[tuple[str, "Tier"]]:
    """In words, and the tier as it would be."""
    there = devices_of(tier, profile.devices)
    if served(specs):
        for precision in ("fp8", "int4"):
            lower = replace(tier, precision=precision)
            if not specs[0].weight_bytes.bf16 or not getattr(specs[0].weight_bytes, precision):
                continue
            share = max(least_share(lower, specs, device) for device in there)
            if share < tier.memory_share:
                words = f'with precision = "{precision}" and memory_share = {share}'
                yield words, replace(lower, memory_share=share)
    for device in profile.devices:
        alike = {device.memory_bytes for device in there} == {device.memory_bytes}
        if device not in there and alike and device_count(tier) == 1:
            yield f'with device = "{device.name}"', replace(tier, device=device.name)
    if tier.residency == "resident":
        yield 'with residency = "sleep"', replace(tier, residency="sleep")
