"""The collector: verdicts into the database, then their commit in the ledger, in which the windows move."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack

import structlog
from msgspec import Struct

from configs.errors import MessageError
from configs.profile import COLLECTOR, Profile
from routing.answers import Claim, Standing
from routing.batches import UNREADABLE_MS, again
from routing.failpoints import Window, failpoint
from routing.messages import UNLABELLED, Claimed, Verdict, decode_verdicts
from routing.owner import Owner
from routing.refusals import Lost
from routing.store import PhotoStore
from workers.mcc import RollingMcc, cell
from workers.progress import Progress
from workers.stop import Stop
from workers.verdicts import VerdictDatabase

log = structlog.get_logger(__name__)

#: The scope of the subnet's score: labelled answers and voids, in order.
SUBNET = "subnet"
#: Scopes of photos that a model was trained on begin with this; headline figures are those of the others.
SEEN = "seen/"
OVERALL = "all"

#: The windows over which MCC rolls in memory; all time is the ledger's counters.
WINDOWS = (100, 1000)

#: Bytes of quarantined photos are kept this long for a replay.
KEEP_QUARANTINED_S = 7 * 24 * 3600

_LOG_EVERY_S = 5.0

#: Cells on the wire are digits; workers.mcc counts bytes 0 to 3 and knows no voids.
_CELLS = bytes.maketrans(b"0123", bytes(range(4)))


def scopes(verdict: Verdict) -> list[str]:
    """The scopes that a labelled verdict counts in: over-all, its settling tier, its origin, the subnet's score."""
    item = verdict.item
    if verdict.void:
        return [] if item.seen else [SUBNET]
    if item.label == UNLABELLED:
        return []
    origin = item.origin.replace("|", "_")
    if item.seen:
        return [SEEN + OVERALL, f"{SEEN}tier:{verdict.tier}", f"{SEEN}origin:{origin}"]
    return [OVERALL, f"tier:{verdict.tier}", f"origin:{origin}", SUBNET]


class _Tally(Struct):
    """What a commit needs of one source's verdicts."""

    positions: list[int]
    packed: list[str]
    replays: list[str]
    voids: list[int]
    stored: list[int]
    kept: list[int]


class Windows:
    """Rolling MCC in memory, O(1) a verdict, fed by what each commit released; one over each scope and window.

    Args:
        load: a scope's last 1,000 cells in the ledger, asked once a scope: a new collector goes on there.
    """

    def __init__(self, load: Callable[[str], bytes]) -> None:
        self._load = load
        self._windows: dict[str, dict[int, RollingMcc]] = {}

    def extend(self, scope: str, cells: bytes) -> None:
        """Appends cells as the ledger spells them, which has them already."""
        if scope not in self._windows:
            cells = self._load(scope)
            self._windows[scope] = {window: RollingMcc(window) for window in WINDOWS}
        known = cells.translate(_CELLS, b"-")
        for rolling in self._windows[scope].values():
            rolling.extend(known)

    def get(self, scope: str, window: int) -> RollingMcc:
        """The rolling MCC of a scope that was extended."""
        return self._windows[scope][window]

    def forget(self) -> None:
        """After a commit whose reply was lost: what it released is only in the ledger."""
        self._windows = {}

    def __contains__(self, scope: str) -> bool:
        return scope in self._windows


class CollectorStop(Stop):
    """The last stop of every photo.

    Args:
        profile: the fleet.
        database: where rows go.
        store: where the photo's bytes were.
        owner: this process's hold on batches.
        progress: what the owner watches.
    """

    def __init__(
        self, profile: Profile, database: VerdictDatabase, store: PhotoStore, owner: Owner, progress: Progress
    ) -> None:
        super().__init__(COLLECTOR, profile.collector.max_batch, owner, progress)
        self.linger_s = profile.collector.linger_ms / 1000
        self._profile = profile
        self._database = database
        self._store = store
        self._packed: dict[tuple[int, bool | None, str, str, bool], str] = {}
        self.windows = Windows(owner.ledger.window)
        self._logged_s = time.monotonic()
        self._writing = threading.Lock()
        #: The windows in memory follow the ledger's only if releases are taken in in the order of commits.
        self._committing = threading.Lock()

    def hurry(self) -> None:
        """Nothing: a claim is a commit or two."""

    def work(self, claim: Claim) -> None:
        """Database first, then commit: a crash between the two repeats the insert, which changes nothing."""
        batches: list[Claimed] = []
        rows: list[tuple[Verdict, int]] = []
        for batch in claim.batches:
            try:
                verdicts = decode_verdicts(batch.blob)
            except MessageError as error:
                log.error("a batch that nobody here can read waits", bid=batch.bid, error=str(error))  # noqa: TRY400
                self._put_back(claim, batch)
                continue
            batches.append(batch)
            rows += [(verdict, batch.gen) for verdict in verdicts]
        if not batches:
            return
        # While one thread waits for the disk, another decodes; the database takes one writer.
        with ExitStack() as stack:
            with self.progress.elsewhere():
                stack.enter_context(self._writing)
            # A disk that is full has space again one day: until then nothing is lost, and nobody is to be restarted.
            self.patiently(lambda: self._database.write(rows))
        failpoint(Window.INSERT_COMMIT)
        self.progress.moved()
        self._commit(claim, batches, [verdict for verdict, _ in rows])

    def _put_back(self, claim: Claim, batch: Claimed) -> None:
        child = again(batch, COLLECTOR, claim.now_us // 1000 + UNREADABLE_MS)
        try:
            self.patiently(lambda: self.owner.ledger.settle(claim.owner, [batch], [child]))
        except Lost:
            log.warning("settle refused", tier=COLLECTOR, bid=batch.bid)

    def _commit(self, claim: Claim, batches: list[Claimed], verdicts: list[Verdict]) -> None:
        tallies: defaultdict[str, _Tally] = defaultdict(lambda: _Tally([], [], [], [], [], []))
        quarantined = 0
        for verdict in verdicts:
            item = verdict.item
            tally = tallies[item.source]
            packed = self._pack(verdict)
            if item.replay:
                tally.replays.append(packed)
            else:
                tally.positions.append(item.position)
                tally.packed.append(packed)
            if verdict.p is None:
                quarantined += 1
                tally.voids.append(item.position)
                if item.stored_bytes:
                    tally.kept.append(item.position)
            elif item.stored_bytes:
                tally.stored.append(item.position)
        standings = [
            Standing(source, t.positions, t.packed, t.replays, t.voids, t.stored, t.kept)
            for source, t in tallies.items()
        ]
        with self._committing:
            over = self._move_windows(claim, batches, standings, len(verdicts) - quarantined, quarantined)
        if over:
            self._drop(standings)

    def _drop(self, standings: list[Standing]) -> None:
        """Lets the bytes of settled photos go; where that fails they stay, and their verdicts stand."""
        for standing in standings:
            try:
                self._store.drop(standing.source, standing.stored)
            except OSError as error:
                log.warning("bytes stay in the photo store", source=standing.source, error=str(error))

    def _move_windows(
        self, claim: Claim, batches: list[Claimed], standings: list[Standing], verdicts: int, quarantined: int
    ) -> bool:
        """Commits; whether these verdicts are over, be it by this commit or by one whose reply was lost."""
        try:
            committed = self.patiently(
                lambda: self.owner.ledger.commit(
                    claim.owner,
                    batches,
                    standings,
                    verdicts=verdicts,
                    quarantined=quarantined,
                    late_after_ms=round(self._profile.collector.late_after_s * 1000),
                    keep_s=KEEP_QUARANTINED_S,
                )
            )
        except Lost as lost:
            log.warning("commit refused", lost=len(lost.bids), batches=len(batches))
            self.windows.forget()
            return not lost.fenced
        for scope, cells in committed.released.items():
            self.windows.extend(scope, cells)
        self._log()
        return True

    def _pack(self, verdict: Verdict) -> str:
        """The verdict as its windows see it: cell|scope|scope... Few are distinct, so each is built once."""
        item = verdict.item
        p = verdict.p
        key = (item.label, None if p is None else p > 0.5, verdict.tier, item.origin, item.seen)
        packed = self._packed.get(key)
        if packed is None:
            mark = "-" if p is None or item.label == UNLABELLED else str(cell(item.label, p))
            packed = self._packed[key] = "|".join([mark, *scopes(verdict)])
        return packed

    def _log(self) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < _LOG_EVERY_S or OVERALL not in self.windows:
            return
        self._logged_s = now_s
        counts = self.windows.get(OVERALL, 1000).counts
        log.info("rolling mcc", window=1000, mcc=counts.mcc, tp=counts.tp, tn=counts.tn, fp=counts.fp, fn=counts.fn)
