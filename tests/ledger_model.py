"""The ledger as a model in memory: what must be where after each move, written from its rules, not its scripts."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from configs.profile import COLLECTOR, ROUTE
from routing.messages import Child, Claimed, Item, Verdict, decode_items, decode_verdicts

READY, LATER = "ready", "later"
#: No back-off is longer; what is due later than that is of a clock that went back.
LONGEST_WAIT_MS = 600_000
#: As tests.ledgers.commit says it.
KEEP_MS = 100_000


@dataclass
class Batch:
    """One batch; ``place`` is READY, LATER or the (owner, token) that holds it."""

    tier: str
    lane: str
    order: int
    n: int
    blob: bytes
    deadline_ms: int
    due_ms: int = 0
    place: str | tuple[str, str] = READY
    claimed_at: int = 0
    claims: int = 0
    apart: bool = False
    at: int | None = None
    deaths: Counter[int] = field(default_factory=Counter)

    def items(self) -> list[Item]:
        """What is in it."""
        if self.tier == COLLECTOR:
            return [verdict.item for verdict in decode_verdicts(self.blob)]
        return decode_items(self.blob)


@dataclass
class Windows:
    """Verdicts in order: what waits, what was released, what was counted."""

    next: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waiting: dict[str, dict[int, tuple[int, str]]] = field(default_factory=lambda: defaultdict(dict))
    cells: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def take(self, source: str, verdicts: Iterable[tuple[int, str, bool]], now_ms: int, late_after_ms: int) -> int:
        """One source's (position, packed, replay) of a commit; how many were late."""
        late = 0
        waiting = self.waiting[source]
        for position, packed, replay in verdicts:
            cell, *scopes = packed.split("|")
            for scope in scopes:
                self.counts[scope][cell] += 1
            if replay or position < self.next[source]:
                late += 1
            else:
                waiting[position] = (now_ms, packed)
        while waiting:
            head = min(waiting)
            since_ms, packed = waiting[head]
            if head > self.next[source] and now_ms - since_ms <= late_after_ms:
                if since_ms > now_ms:
                    # The clock went back: what waits counts its age from now.
                    waiting.update({position: (now_ms, mark) for position, (_, mark) in waiting.items()})
                break
            cell, *scopes = packed.split("|")
            if "subnet" in scopes:
                self.cells["subnet"] += [(f"{source}:{gap}", "-") for gap in range(self.next[source], head)]
            for scope in scopes:
                self.cells[scope].append((f"{source}:{head}", cell))
            del waiting[head]
            self.next[source] = head + 1
        return late


class Model:
    """Batches by id, owners by beat."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.beats: dict[str, int] = {}
        self.order = 0
        self.admitted: dict[str, int] = {}
        self.ended: Counter[str] = Counter()
        self.replayed: Counter[str] = Counter()
        #: Until when, by id.
        self.quarantine: dict[str, int] = {}
        self.windows = Windows()

    def admit(self, source: str, end: int, children: Sequence[Child]) -> None:
        """New batches, in order of admission."""
        for child in children:
            self._write(child, self.order)
            self.order += child.n
        self.admitted[source] = end

    def _write(self, child: Child, order: int) -> None:
        place = LATER if child.not_before_ms else READY
        self.batches[child.bid] = Batch(
            child.tier,
            child.lane,
            order,
            child.n,
            child.blob,
            child.deadline_ms,
            child.not_before_ms,
            place,
            apart=child.apart,
        )

    def end_back_off(self, now_ms: int) -> None:
        """What a claim under a new token and a tick begin with."""
        for batch in self.batches.values():
            if batch.place == LATER and not now_ms < batch.due_ms <= now_ms + LONGEST_WAIT_MS:
                batch.place = READY

    def route(self, now_ms: int, known: Sequence[str]) -> None:
        """A tick: what is overdue, and what no known stop serves, goes to route unless somebody holds it."""
        self.end_back_off(now_ms)
        for batch in self.batches.values():
            overdue = 0 < batch.deadline_ms <= now_ms and batch.place in {READY, LATER}
            if overdue or (batch.place == READY and batch.tier not in {*known, ROUTE, COLLECTOR}):
                batch.tier, batch.place = ROUTE, READY
            if overdue:
                batch.deadline_ms = 0

    def ready(self, stop: str) -> dict[str, list[int]]:
        """Orders of what may be claimed at a stop, by lane, oldest first."""
        lanes: dict[str, list[int]] = {"live": [], "bulk": []}
        for batch in self.batches.values():
            if batch.tier == stop and batch.place == READY:
                lanes[batch.lane].append(batch.order)
        return {lane: sorted(orders) for lane, orders in lanes.items()}

    def claim(self, owner: str, token: str, claimed: Sequence[Claimed]) -> None:
        """Holds what the ledger handed out, having checked that it is what the model has."""
        for got in claimed:
            batch = self.batches[got.bid]
            assert batch.place == READY
            batch.place, batch.claimed_at = (owner, token), self.beats[owner]
            batch.claims += 1
            assert (got.order, got.lane, got.n, got.blob) == (batch.order, batch.lane, batch.n, batch.blob)
            assert (got.apart, got.claims, got.deaths) == (batch.apart, batch.claims, dict(batch.deaths))

    def lost(self, owner: str, parents: Sequence[Claimed]) -> set[str]:
        """Those that this owner may not settle."""
        return {p.bid for p in parents if p.bid not in self.batches or self.batches[p.bid].place != (owner, p.token)}

    def settle(self, parents: Sequence[Claimed], children: Sequence[Child]) -> None:
        """Children in their parents' place."""
        order = min(self.batches.pop(parent.bid).order for parent in parents)
        for child in children:
            self._write(child, order)

    def commit(
        self, parents: Sequence[Claimed], verdicts: Sequence[Verdict], packed: Sequence[str], now_ms: int, late_ms: int
    ) -> int:
        """Verdicts end their photos; how many were late."""
        for parent in parents:
            del self.batches[parent.bid]
        by_source: dict[str, list[tuple[int, str, bool]]] = {}
        for verdict, mark in zip(verdicts, packed, strict=True):
            item = verdict.item
            by_source.setdefault(item.source, []).append((item.position, mark, item.replay))
            self.ended[item.id] += 1
            if verdict.void:
                self.quarantine[item.id] = now_ms + KEEP_MS
        self.quarantine = {id_: until_ms for id_, until_ms in self.quarantine.items() if until_ms > now_ms}
        return sum(self.windows.take(source, marks, now_ms, late_ms) for source, marks in by_source.items())

    def beat(self, owner: str, tokens: set[str]) -> None:
        """What the owner does not say it holds, and claimed two beats ago, is ready again."""
        self.beats[owner] += 1
        for batch in self.held(owner):
            if batch.place[1] not in tokens and self.beats[owner] - batch.claimed_at >= 2:
                batch.place, batch.at = READY, None

    def held(self, owner: str) -> list[Batch]:
        """An owner's batches."""
        return [
            batch for batch in self.batches.values() if batch.place not in {READY, LATER} and batch.place[0] == owner
        ]

    def leave(self, owner: str) -> None:
        """Back without a fault."""
        for batch in self.held(owner):
            batch.place, batch.at = READY, None
        self.beats.pop(owner, None)

    def reap(self, owner: str) -> int:
        """Back, to run apart; a death apart is a fault of the item that it was at."""
        held = self.held(owner)
        for batch in held:
            if batch.apart and batch.at is not None:
                batch.deaths[batch.at] += 1
            batch.apart = True
        self.leave(owner)
        return len(held)
