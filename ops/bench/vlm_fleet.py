"""A VLM tier through the whole fleet: admission, workers, the collector, against a server that runs already."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from configs.errors import AccountError
from configs.profile import load_profile
from ops.account import baseline, settle_account
from ops.bench.through import SOURCE, TIER, feed, until
from ops.fleet import fleet_children
from ops.serve import DATABASE
from ops.server import EmbeddedServer
from ops.supervisor import Supervisor
from producers.admission import Admission
from producers.admitted import read_journal
from producers.journal import Journal
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.store import ServerPhotos
from workers.verdicts import VerdictDatabase
from workers.weights import WEIGHTS_VARIABLE

#: Shares of the verdicts between which the rate is taken: before, the workers fill; after, they run dry.
_FROM, _TO = 0.15, 0.85


class FleetLoad(Struct, frozen=True):
    """A fleet of one tier, and what goes through it."""

    #: A profile of one tier, in TOML; its server is up.
    profile: str
    weights: Path
    photos: Sequence[bytes]
    side_px: int


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
    """Starts the fleet, feeds it, waits for every verdict, checks the account: a photo without a vote fails it.

    Args:
        server: emptied first.
        folder: an empty one, for logs, journal and database.
        load: what goes through.

    Raises:
        FleetError: a process gave up, verdicts did not come, or the account does not balance.
    """
    client = server.address.connect()
    client.flushall()
    profile_path = folder / "measured.toml"
    profile_path.write_text(load.profile)
    profile = load_profile(str(profile_path))
    ledger = Ledger(client)
    before = baseline(ledger, profile)
    env = {DATABASE: f"sqlite:///{folder / 'verdicts.db'}", WEIGHTS_VARIABLE: str(load.weights.absolute())}
    children = fleet_children(profile, str(profile_path), server.address, folder, env, None)
    images = len(load.photos)
    series: list[tuple[float, int]] = []

    def done() -> int:
        ended = images - ledger.snapshot([]).use.get("items", 0)
        series.append((time.perf_counter(), ended))
        return ended

    begun_s = time.perf_counter()
    with Supervisor(children) as fleet:
        until(fleet, lambda: fleet.all_ready)
        ready_s = time.perf_counter() - begun_s
        with Journal.create(
            folder / "journal", SOURCE, profile=profile.digest(), spec="noise", limit=None, started_ms=0
        ) as journal:
            doorbells = Doorbells(make_app(server.address, profile, events=False))
            admission = Admission(SOURCE, profile, ledger, ServerPhotos(client), doorbells, journal, "bulk")
            feed(admission, profile, load.photos, load.side_px)
        until(fleet, lambda: done() >= images, lambda: series[-1][1])
    with VerdictDatabase(env[DATABASE], create=False) as database:
        account = settle_account([read_journal(journal.path)], database, ledger, before)
    if not account.balanced or account.quarantined or account.admitted != images:
        raise AccountError(f"{TIER}: the account does not balance: {account.problems or account}")
    (first_s, first), (from_s, start), (to_s, end), (last_s, last) = _marks(series, images)
    return FleetRate(
        images, (end - start) / (to_s - from_s), (last - first) / (last_s - first_s), to_s - from_s, ready_s
    )


def _marks(series: Sequence[tuple[float, int]], images: int) -> Iterator[tuple[float, int]]:
    """When so many were there: the first, both ends of the middle, all.

    Raises:
        AccountError: they came all at once, too few for a rate.
    """
    found = [next((mark for mark in series if mark[1] >= least), None) for least in (1, _FROM * images, _TO * images)]
    marks = [mark for mark in (*found, series[-1]) if mark is not None]
    if len({mark[1] for mark in marks}) < len(marks):
        raise AccountError(f"{images} photos are too few to measure the fleet by")
    return iter(marks)
