"""A fleet of one tier, started, fed and accounted for, and when its verdicts came: what benchmarks take rates from.

How a benchmark feeds a fleet, and asks for its account, is here for fleets of other tiers too.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from configs.errors import AccountError, ServerError
from configs.profile import Profile, load_profile
from ops.account import Baseline, baseline, settle_account
from ops.fleet import fleet_children
from ops.serve import DATABASE
from ops.server import EmbeddedServer
from ops.supervisor import POLL_INTERVAL_S, Supervisor
from producers.admission import Admission
from producers.admitted import read_journal
from producers.journal import Journal
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.messages import UNLABELLED, Item
from routing.store import ServerPhotos
from workers.verdicts import VerdictDatabase
from workers.weights import WEIGHTS_VARIABLE

SOURCE = "bench"
TIER = "measured"
#: Items, and the photos of each, or none where pixels live elsewhere: what is admitted at once.
Admit = tuple[list[Item], Sequence[bytes]]
#: Batches of one, as the producer does when photos come faster than it admits.
ADMIT_BATCHES = 4
#: No verdict for this long, and there will be none.
_STILL_S = 60.0
#: As in ops.bench.bare: a focal length, so that depth models take the photo.
_FOCAL_PX = 600.0


class FleetLoad(Struct, frozen=True):
    """A fleet of one tier, and what goes through it."""

    #: A profile of one tier, in TOML; if its model is served, the server is up.
    profile: str
    weights: Path
    #: All square, of this side.
    photos: Sequence[bytes]
    side_px: int


class FleetTimes(Struct, frozen=True):
    """What came out."""

    #: When so many verdicts were there, on the clock of time.perf_counter; ascending, the last has all.
    verdicts: Sequence[tuple[float, int]]
    #: Until the workers took work: libraries, weights, warm-up.
    ready_s: float

    def per_s(self, start: float, end: float) -> tuple[float, float]:
        """Verdicts a second from the first mark with so many to the first with so many; and the seconds between.

        Raises:
            AccountError: they came all at once.
        """
        (start_s, first), (end_s, last) = (
            next(mark for mark in self.verdicts if mark[1] >= least) for least in (start, end)
        )
        if last == first:
            raise AccountError(f"{self.verdicts[-1][1]} photos are too few to measure the fleet by")
        return (last - first) / (end_s - start_s), end_s - start_s


def drive(server: EmbeddedServer, folder: Path, load: FleetLoad) -> FleetTimes:
    """Starts the fleet, feeds it, waits for every verdict, checks the account.

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
    marks: list[tuple[float, int]] = []

    def done() -> int:
        ended = images - ledger.snapshot([]).use.get("items", 0)
        marks.append((time.perf_counter(), ended))
        return ended

    begun_s = time.perf_counter()
    # One that dies is a finding, not something to heal: the supervisor's restarts would only blur the rate.
    with Supervisor(children) as fleet:
        _until(fleet, lambda: fleet.all_ready)
        ready_s = time.perf_counter() - begun_s
        journal = feed(server, profile, folder / "journal", _admits(load, ADMIT_BATCHES * profile.batch.max_items))
        _until(fleet, lambda: done() >= images, lambda: marks[-1][1])
    require_all(images, journal, env[DATABASE], ledger, before)
    return FleetTimes(marks, ready_s)


def feed(server: EmbeddedServer, profile: Profile, folder: Path, admits: Iterable[Admit]) -> Path:
    """Admits photos as fast as it can, and closes their source; where their journal is.

    Args:
        server: of the fleet.
        profile: of the fleet.
        folder: for the journal.
        admits: one after another, ADMIT_BATCHES batches each.
    """
    client = server.address.connect()
    with Journal.create(folder, SOURCE, profile=profile.digest(), spec="made", limit=None, started_ms=0) as journal:
        doorbells = Doorbells(make_app(server.address, profile, events=False))
        admission = Admission(SOURCE, profile, Ledger(client), ServerPhotos(client), doorbells, journal, "bulk")
        admission.open()
        for items, photos in admits:
            admission.admit(items, photos, {})
        admission.close()
    return journal.path


def require_all(images: int, journal: Path, database_url: str, ledger: Ledger, before: Baseline) -> None:
    """Checks that so many images came, and all of them to a verdict.

    Raises:
        AccountError: the account does not balance, or images are missing or in quarantine.
    """
    with VerdictDatabase(database_url, create=False) as database:
        account = settle_account([read_journal(journal)], database, ledger, before)
    if not account.balanced or account.quarantined or account.admitted != images:
        raise AccountError(f"the account does not balance: {account.problems or account}")


def _admits(load: FleetLoad, step: int) -> Iterator[Admit]:
    for start in range(0, len(load.photos), step):
        photos = load.photos[start : start + step]
        now_ms = int(time.time() * 1000)
        items = [
            Item(
                source=SOURCE,
                position=position,
                origin=SOURCE,
                label=UNLABELLED,
                sha256=hashlib.sha256(photo).digest(),
                stored_bytes=len(photo),
                size_px=(load.side_px, load.side_px),
                focal_px=_FOCAL_PX,
                taken_ms=now_ms,
            )
            for position, photo in enumerate(photos, start)
        ]
        yield items, photos


def _until(fleet: Supervisor, done: Callable[[], bool], count: Callable[[], int] = int) -> None:
    """Waits, minding the processes; until they are ready the supervisor bounds it.

    Raises:
        ServerError: one died; with the last lines that it wrote.
        AccountError: the count stood still for long.
    """
    last, moved_s = -1, time.monotonic()
    while not done():
        for event in fleet.poll():
            if event.what in {"exited", "killed"}:
                raise ServerError(f"{event.child} {event.what}: {event.detail}")
        now = count()
        if now != last or not fleet.all_ready:
            last, moved_s = now, time.monotonic()
        elif time.monotonic() - moved_s > _STILL_S:
            raise AccountError(f"{now:,} verdicts came, and no more for {_STILL_S:g} s")
        time.sleep(POLL_INTERVAL_S / 10)
