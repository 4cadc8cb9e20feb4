"""How long servers took to wake and to fall asleep: the last hundred of each, in a file that `vllm status` reads."""

import statistics
import threading
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec import Struct

from ops.private_file import write_private

log = structlog.get_logger(__name__)

FILE = "wakes.json"
_KEPT = 100

Move = Literal["wake", "sleep"]


class Taken(Struct):
    """Of one tier, seconds of each move, the latest last."""

    wake: list[float] = []
    sleep: list[float] = []


class Wakes:
    """Of the tiers of one fleet; thread-safe.

    Args:
        folder: of the fleet, with what an earlier one left there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lock = threading.Lock()
        self._taken = read_wakes(folder)

    def note(self, tier: str, move: Move, seconds: float) -> None:
        """Keeps the seconds, and logs them."""
        log.info("moved", tier=tier, move=move, seconds=round(seconds, 3))
        with self._lock:
            taken = self._taken.setdefault(tier, Taken())
            kept: list[float] = getattr(taken, move)
            kept.append(round(seconds, 3))
            del kept[:-_KEPT]
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_private(self._path, msgspec.json.encode(self._taken).decode())
            except OSError as error:
                # No reason to leave a tier asleep.
                log.error("cannot keep it", path=str(self._path), error=error.strerror)  # noqa: TRY400


def read_wakes(folder: Path) -> dict[str, Taken]:
    """By tier; empty where nothing was kept."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=dict[str, Taken])
    except (OSError, msgspec.DecodeError):
        return {}


def median_s(seconds: list[float]) -> float | None:
    """Of some seconds; None: there are none."""
    return statistics.median(seconds) if seconds else None
