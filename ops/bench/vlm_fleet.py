"""A VLM tier through the whole fleet: admission, workers, the collector, against a server that runs already."""

from pathlib import Path

from msgspec import Struct

from ops.bench.driven import FleetLoad, drive
from ops.server import EmbeddedServer

#: Shares of the verdicts between which the rate is taken: before, the workers fill; after, they run dry.
_FROM, _TO = 0.15, 0.85


class FleetRate(Struct, frozen=True):
    """What came out."""

    photos: int
    #: Verdicts a second in the middle of the run, and over all of it, first to last.
    photos_per_s: float
    overall_per_s: float
    #: The middle, in seconds.
    window_s: float
    ready_s: float


def measure(server: EmbeddedServer, folder: Path, load: FleetLoad) -> FleetRate:
    """Drives a fleet whose tier asks a server; a photo without a vote fails it.

    Args:
        server: emptied first.
        folder: an empty one, for logs, journal and database.
        load: what goes through.

    Raises:
        FleetError: a process gave up, verdicts did not come, or the account does not balance; or they came all at
            once, too few for a rate.
    """
    times = drive(server, folder, load)
    images = len(load.photos)
    middle_per_s, window_s = times.per_s(_FROM * images, _TO * images)
    return FleetRate(images, middle_per_s, times.per_s(1, images)[0], window_s, times.ready_s)
