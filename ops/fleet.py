"""A fleet's processes as children of a supervisor: a worker a tier, the collector, Flower, and perhaps a producer."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from configs.errors import ConfigError
from configs.memory import served
from configs.profile import COLLECTOR, Profile
from ops.child import Child
from ops.flower import FlowerCommand
from ops.residency_control import Residency
from ops.serve import READY_FILE
from ops.sleeping_tier import worker_names
from ops.vllm_children import Servers, find_servers
from routing.address import ServerAddress
from workers.engines import require_engine

#: Which workers a rolling restart replaces by a successor that is ready before they drain, so that their tier does not
#: pause. Those on a GPU are not among them unless asked for: its memory may not hold the model twice, and the successor
#: would fail, or take from its forerunner.
Overlap = Literal["cpu", "all", "none"]


#: What the worker of a served tier does besides waiting for the server.
LOAD_S = 60.0


def command(*arguments: str) -> list[str]:
    """A natix-fleet command as a child's argv, in this very environment."""
    return [sys.executable, "-m", "ops.cli", *arguments]


def server_children(servers: Servers, residency: Residency | None) -> Iterator[Child]:
    """The children of VLM servers; those of tiers that sleep start when they may have their device."""
    tiers = {name: tier for tier, name in servers.names.items()}
    for child in servers.children:
        tier = tiers.get(child.name)
        if residency and tier and tier in residency:
            yield replace(child, may_start=partial(residency.may_start, tier))
        else:
            yield child


def require_engines(profile: Profile) -> None:
    """Every model of a profile has an engine: asked before anything starts.

    Raises:
        ConfigError: one has none.
    """
    for specs in profile.models().values():
        for spec in specs:
            require_engine(spec)


def fleet_children(
    profile: Profile,
    profile_name: str,
    address: ServerAddress,
    folder: Path,
    env: Mapping[str, str],
    flower: FlowerCommand | None,
    overlap: Overlap = "cpu",
    servers: Servers | None = None,
    residency: Residency | None = None,
) -> list[Child]:
    """The children of a profile: the servers of its VLM tiers, the collector, each tier's workers, Flower.

    Args:
        profile: the fleet.
        profile_name: as the user named it.
        address: the server.
        folder: for logs and ready files.
        env: what else they get by environment.
        flower: how Flower is started; None: without it.
        overlap: which workers' successors come up beside them. Never the collector's, whose database takes one writer,
            nor Flower's, which has a port.
        servers: of the tiers, as find_servers found them; None: it is asked now.
        residency: who says when a tier that sleeps may have its device.

    Raises:
        BusyError: somebody has a server's port.
        ConfigError: a server cannot be had, or a tier sleeps and nobody would wake it.
    """
    servers = find_servers(profile, folder, address) if servers is None else servers
    if residency is None and any(tier.residency == "sleep" for tier in profile.tiers):
        raise ConfigError(f"profile {profile.name!r} has tiers that sleep: only natix-fleet up and run wake them")

    def worker(
        name: str,
        argv: Sequence[str],
        threads: int = 1,
        *,
        overlaps: bool = False,
        after: tuple[str, ...] = (),
        ready_within_s: float = Child.ready_within_s,
    ) -> Child:
        ready_file = folder / f"{name}.ready"
        return Child(
            name=name,
            argv=argv,
            env={**env, "REDIS_URL": address.url, READY_FILE: str(ready_file), "OMP_NUM_THREADS": str(threads)},
            log=folder / f"{name}.log",
            ready_file=ready_file,
            overlaps=overlaps,
            after=after,
            ready_within_s=ready_within_s,
        )

    models = profile.models()
    children = list(server_children(servers, residency))
    children += [worker(COLLECTOR, command("collector", "--profile", profile_name))]
    for tier in profile.tiers:
        overlaps = overlap == "all" or (overlap == "cpu" and tier.device == "cpu")
        argv = command("worker", tier.name, "--profile", profile_name)
        after = servers.before(tier, profile)
        # It may wait so long for a server that is not there yet, and says itself that it was in vain.
        within_s = tier.server.start_within_s + LOAD_S if served(models[tier.name]) else Child.ready_within_s
        children += [
            worker(name, argv, overlaps=overlaps, after=after, ready_within_s=within_s) for name in worker_names(tier)
        ]
    if flower:
        children.append(Child(name="flower", argv=flower.argv, env=flower.env, log=folder / "flower.log"))
    return children
