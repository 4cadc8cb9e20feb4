"""A fleet's processes as children of a supervisor: a worker a tier, the collector, Flower, and perhaps a producer."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from configs.profile import COLLECTOR, Profile
from ops.child import Child
from ops.flower import FlowerCommand
from ops.serve import READY_FILE
from routing.address import ServerAddress
from workers.engines import require_engine

#: Which workers a rolling restart replaces by a successor that is ready before they drain, so that their tier does not
#: pause. Those on a GPU are not among them unless asked for: its memory may not hold the model twice, and the successor
#: would fail, or take from its forerunner.
Overlap = Literal["cpu", "all", "none"]


def command(*arguments: str) -> list[str]:
    """A natix-fleet command as a child's argv, in this very environment."""
    return [sys.executable, "-m", "ops.cli", *arguments]


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
) -> list[Child]:
    """The children of a profile: the collector, each tier's workers, Flower.

    Args:
        profile: the fleet.
        profile_name: as the user named it.
        address: the server.
        folder: for logs and ready files.
        env: what else they get by environment.
        flower: how Flower is started; None: without it.
        overlap: which workers' successors come up beside them. Never the collector's, whose database takes one writer,
            nor Flower's, which has a port.
    """

    def worker(name: str, argv: Sequence[str], threads: int = 1, *, overlaps: bool = False) -> Child:
        ready_file = folder / f"{name}.ready"
        return Child(
            name=name,
            argv=argv,
            env={**env, "REDIS_URL": address.url, READY_FILE: str(ready_file), "OMP_NUM_THREADS": str(threads)},
            log=folder / f"{name}.log",
            ready_file=ready_file,
            overlaps=overlaps,
        )

    children = [worker(COLLECTOR, command("collector", "--profile", profile_name))]
    for tier in profile.tiers:
        overlaps = overlap == "all" or (overlap == "cpu" and tier.device == "cpu")
        for i in range(tier.workers):
            name = tier.name if tier.workers == 1 else f"{tier.name}-{i}"
            argv = command("worker", tier.name, "--profile", profile_name)
            children.append(worker(name, argv, overlaps=overlaps))
    if flower:
        children.append(Child(name="flower", argv=flower.argv, env=flower.env, log=folder / "flower.log"))
    return children
