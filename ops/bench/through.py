"""An engine or a panel through the whole fleet: admission, a real worker of one tier, the collector, the database."""

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from ops.bench.driven import TIER, FleetLoad, drive
from ops.server import EmbeddedServer


class Load(Struct, frozen=True):
    """What goes through."""

    #: One model, or a panel of several.
    keys: tuple[str, ...]
    device: str
    weights: Path
    photos: Sequence[bytes]
    side_px: int
    max_batch: int
    #: Threads of the worker that decode.
    threads: int


class Through(Struct, frozen=True):
    """What came out."""

    images: int = 0
    #: From the first verdict to the last.
    images_per_s: float = 0.0
    #: Until the worker took work: libraries, weights, warm-up.
    ready_s: float = 0.0
    error: str = ""


def measure(server: EmbeddedServer, folder: Path, load: Load) -> Through:
    """Drives a fleet of one tier on a device.

    Args:
        server: emptied first.
        folder: an empty one, for logs, journal and database.
        load: what goes through.

    Raises:
        FleetError: a process gave up, verdicts did not come, or the account does not balance.
    """
    times = drive(server, folder, FleetLoad(_profile(load), load.weights, load.photos, load.side_px))
    images = len(load.photos)
    return Through(images, times.per_s(1, images)[0], times.ready_s)


def _profile(load: Load) -> str:
    """A fleet of one tier, as a user would write it."""
    voters = ", ".join(f'{{ model = "{key}" }}' for key in load.keys)
    return "\n".join(
        [
            f'name = "{TIER}"',
            "[batch]",
            f"max_items = {min(load.max_batch, 4096)}",
            "[photos]",
            f"max_side_px = {max(load.side_px, 64)}",
            "[[tiers]]",
            f'name = "{TIER}"',
            f"panel = [{voters}]",
            f'device = "{load.device}"',
            f"max_batch = {load.max_batch}",
            f"threads = {load.threads}",
            "stall_s = 120.0",
            "",
        ]
    )
