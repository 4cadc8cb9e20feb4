"""The ledger under any order of moves, faults among them, against a model in memory."""

import copy
import random
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from configs.profile import COLLECTOR, ROUTE
from routing.audit import audit, read_book
from routing.batches import verdict_batch
from routing.ledger import PREFIX, Ledger, new_id
from routing.messages import Child, Claimed, Item, decode_items, decode_verdicts, encode
from routing.refusals import Lost, Misplaced, OwnerDead, Zombie
from tests.ledger_dice import intake, outcome
from tests.ledger_model import Model
from tests.ledgers import FIRST, MANY, SECOND, Clock, commit, judged, photo, photos, standing

TIERS = (FIRST, SECOND)
STOPS = (*TIERS, COLLECTOR, ROUTE)
LATE_AFTER_MS = 5
SOURCES = ("s", "t")
HOUR_MS = 3_600_000
#: Where the server's earlier moment is kept: a database of the same server.
EARLIER = 1

#: What a rule picks with: an index into whatever is there.
picks = st.integers(0, 1 << 20)
chance = st.integers(0, 3).map(lambda n: n == 0)


class Member:
    """An owner as it sees itself; the ledger may have reaped it long ago."""

    def __init__(self) -> None:
        self.id = new_id()
        self.claims: dict[str, list[Claimed]] = {}


class LedgerMachine(RuleBasedStateMachine):
    """Rules are a fleet's moves; ``redis_client`` is set by the test."""

    redis_client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.redis_client.flushall()
        self.clock = Clock()
        self.ledger = Ledger(self.redis_client, clock_us=self.clock)
        self.model = Model()
        self.members: list[Member] = []
        # Everybody who ever produced a source, zombies too: [source, epoch, offset].
        self.producers: list[list[Any]] = []
        self.epochs = dict.fromkeys(SOURCES, 0)
        self.earlier: tuple[Model, dict[str, int]] | None = None
        # Generations of the database's rows, which no fault of the server takes back.
        self.rows: dict[str, int] = {}
        self.clock_went_back = self.server_went_back = False

    # ---- producers

    @initialize()
    def begin(self) -> None:
        self.open("s", "bulk")
        self.admit(0, 9, 0, "bulk", lost=False)
        self.join()
        self.join()

    @precondition(lambda self: len(self.producers) < 5)
    @rule(source=st.sampled_from(SOURCES), lane=st.sampled_from(("live", "bulk")))
    def open(self, source: str, lane: str) -> None:
        epoch, offset = self.ledger.open(source, lane)
        assert offset == self.model.admitted.get(source, 0)
        self.epochs[source] = epoch
        self.producers.append([source, epoch, offset])

    @precondition(lambda self: self.producers)
    @rule(pick=picks, n=st.integers(1, 9), seed=picks, lane=st.sampled_from(("live", "bulk")), lost=chance)
    def admit(self, pick: int, n: int, seed: int, lane: str, lost: bool) -> None:
        producer = self.producers[pick % len(self.producers)]
        source, epoch, start = producer
        dice = random.Random(seed)
        children = intake(photos(source, start, start + n, stored_bytes=1), lane, self.clock.now_ms, dice)
        for position in range(start, start + n):
            self.redis_client.set(f"{PREFIX}img:{source}:{position}", b"x", ex=1000, nx=True)

        def ask() -> list[str]:
            return self.ledger.admit(
                source,
                epoch,
                start,
                start + n,
                lane,
                children,
                stored=range(start, start + n),
                max_items=MANY,
                max_bytes=MANY,
            )

        if epoch != self.epochs[source]:
            with pytest.raises(Zombie):
                ask()
        elif start != (offset := self.model.admitted.get(source, 0)):
            with suppress(Misplaced):
                # It may look as if it were done: then there is nothing more to do.
                ask()
                assert start + n == offset
            producer[2] = offset
        else:
            ask()
            self.model.admit(source, start + n, children)
            if lost:
                ask()
            producer[2] = start + n

    # ---- owners

    @precondition(lambda self: len(self.members) < 4)
    @rule()
    def join(self) -> None:
        member = Member()
        self.ledger.enlist(member.id, "profile")
        self.model.beats[member.id] = 0
        self.members.append(member)

    @precondition(lambda self: self.members)
    @rule(
        pick=picks,
        stop=st.sampled_from((FIRST, *STOPS)),
        most=st.integers(0, 20),
        asked=st.sampled_from(("once", "twice", "lost")),
    )
    def claim(self, pick: int, stop: str, most: int, asked: str) -> None:
        member = self.members[pick % len(self.members)]
        token = new_id()
        if member.id not in self.model.beats:
            with pytest.raises(OwnerDead):
                self.ledger.claim(stop, member.id, token, most)
            return
        self.model.end_back_off(self.clock.now_ms)
        ready = self.model.ready(stop)
        claim = self.ledger.claim(stop, member.id, token, most)
        self._check_claim(claim.batches, ready, most)
        self.model.claim(member.id, token, claim.batches)
        assert claim.left == sum(b.n for b in self.model.batches.values() if b.tier == stop and b.place == "ready")
        if asked == "twice" and claim.batches:
            repeated = self.ledger.claim(stop, member.id, token, most)
            assert {batch.bid: batch for batch in repeated.batches} == {batch.bid: batch for batch in claim.batches}
        if asked != "lost" and claim.batches:
            member.claims[token] = claim.batches

    def _check_claim(self, got: list[Claimed], ready: dict[str, list[int]], most: int) -> None:
        assert bool(got) == any(ready.values())
        assert len({batch.lane for batch in got}) <= 1
        for lane, orders in ready.items():
            taken = [batch.order for batch in got if batch.lane == lane]
            assert taken == orders[: len(taken)]
        assert len(got) <= 1 or (sum(batch.n for batch in got) <= most and not any(batch.apart for batch in got))

    @precondition(lambda self: any(member.claims for member in self.members))
    @rule(pick=picks, seed=picks, again_too=chance, merge=chance)
    def work(self, pick: int, seed: int, again_too: bool, merge: bool) -> None:
        """Settles a claim, or all of them merged, whether or not they are still this owner's."""
        busy = [member for member in self.members if member.claims]
        member = busy[pick % len(busy)]
        tokens = list(member.claims)
        tokens = tokens if merge else [tokens[seed % len(tokens)]]
        self._work(member, tokens, random.Random(seed), again_too)

    def _work(self, member: Member, tokens: list[str], dice: random.Random, again_too: bool) -> None:
        parents = [batch for token in tokens for batch in member.claims.pop(token)]
        # An owner knows what it claimed where; the model kept that only for batches that still exist.
        at_collector = [batch for batch in parents if is_verdicts(batch)]
        at_tiers = [batch for batch in parents if batch not in at_collector]
        if at_tiers:
            self._settle(member, at_tiers, dice, again_too)
        if at_collector:
            self._commit(member, at_collector, again_too)

    @precondition(lambda self: self.members)
    @rule(pick=picks, stop=st.sampled_from((FIRST, COLLECTOR)), most=st.integers(0, 20), seed=picks)
    def serve(self, pick: int, stop: str, most: int, seed: int) -> None:
        """What a fleet does most: claim and settle at once, while time goes by."""
        self.clock.step_ms(3)
        member = self.members[pick % len(self.members)]
        before = set(member.claims)
        self.claim(pick, stop, most, "once")
        for token in member.claims.keys() - before:
            self._work(member, [token], random.Random(seed), again_too=False)

    def _settle(self, member: Member, parents: list[Claimed], dice: random.Random, again_too: bool) -> None:
        children = outcome(parents, self.clock.now_ms, dice)
        lost = self.model.lost(member.id, parents)
        if lost:
            with pytest.raises(Lost) as refused:
                self.ledger.settle(member.id, parents, children)
            assert refused.value.bids == lost
            # Without the lost ones it must go through.
            rest = [parent for parent in parents if parent.bid not in lost]
            if rest:
                self._settle(member, rest, dice, again_too)
            return
        self.ledger.settle(member.id, parents, children, FIRST, {"scored": 1})
        self.model.settle(parents, children)
        if again_too:
            with pytest.raises(Lost):
                self.ledger.settle(member.id, parents, children)

    def _commit(self, member: Member, parents: list[Claimed], again_too: bool) -> None:
        verdicts = [verdict for parent in parents for verdict in decode_verdicts(parent.blob)]
        for parent in parents:
            self._write_rows([verdict.item.id for verdict in decode_verdicts(parent.blob)], parent.gen)
        if lost := self.model.lost(member.id, parents):
            with pytest.raises(Lost) as refused:
                commit(self.ledger, member.id, parents, LATE_AFTER_MS)
            assert refused.value.bids == lost
            return
        committed = commit(self.ledger, member.id, parents, LATE_AFTER_MS)
        packed = [(part.packed or part.replays)[0] for part in (standing("", [verdict]) for verdict in verdicts)]
        late = self.model.commit(parents, verdicts, packed, self.clock.now_ms, LATE_AFTER_MS)
        assert committed.late == late
        for scope, cells in committed.released.items():
            assert "".join(cell for _, cell in self.model.windows.cells[scope]).encode().endswith(cells)
        if again_too:
            with pytest.raises(Lost):
                commit(self.ledger, member.id, parents, LATE_AFTER_MS)

    def _write_rows(self, ids: list[str], gen: int) -> None:
        """As the collector does before it commits: no row may be refused for an older one."""
        for id_ in ids:
            # Both at once may repeat a time: then the row of the first time stays.
            assert gen >= self.rows.get(id_, 0) or (self.clock_went_back and self.server_went_back)
            self.rows[id_] = gen

    @precondition(lambda self: any(member.claims for member in self.members))
    @rule(pick=picks, index=st.integers(0, 3))
    def mark(self, pick: int, index: int) -> None:
        busy = [member for member in self.members if member.claims]
        member = busy[pick % len(busy)]
        batch = next(iter(member.claims.values()))[0]
        if self.model.lost(member.id, [batch]):
            with pytest.raises(Lost):
                self.ledger.mark(member.id, batch, index)
        else:
            self.ledger.mark(member.id, batch, index)
            self.model.batches[batch.bid].at = index

    @precondition(lambda self: self.members)
    @rule(pick=picks, forgets=chance)
    def heartbeat(self, pick: int, forgets: bool) -> None:
        member = self.members[pick % len(self.members)]
        if forgets:
            member.claims.clear()
        if member.id not in self.model.beats:
            with pytest.raises(OwnerDead):
                self.ledger.heartbeat(member.id, member.claims)
            member.claims.clear()
            self.members.remove(member)
            return
        self.ledger.heartbeat(member.id, member.claims)
        self.model.beat(member.id, set(member.claims))

    @precondition(lambda self: self.members)
    @rule(pick=picks, stale=chance)
    def reap(self, pick: int, stale: bool) -> None:
        """Somebody saw this owner's beat stand still; it may only have been paused, and goes on with what it has."""
        member = self.members[pick % len(self.members)]
        beat = self.model.beats.get(member.id)
        if beat is None or stale:
            assert self.ledger.reap(member.id, -1) is None
        else:
            assert self.ledger.reap(member.id, beat) == self.model.reap(member.id)

    @precondition(lambda self: len(self.members) > 2)
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        member = self.members[pick % len(self.members)]
        self.ledger.leave(member.id)
        self.model.leave(member.id)

    # ---- time, quarantine

    @rule(step_ms=st.sampled_from((0, 10, 200, 1000)))
    def tick(self, step_ms: int) -> None:
        self.clock.step_ms(step_ms)
        tick = self.ledger.tick([*TIERS, COLLECTOR])
        self.model.route(self.clock.now_ms, TIERS)
        assert tick.beats == self.model.beats
        for stop, ready in tick.ready.items():
            assert ready == sum(map(len, self.model.ready(stop).values()))

    @rule(step_ms=st.sampled_from((-HOUR_MS, -100, HOUR_MS)))
    def step_clock(self, step_ms: int) -> None:
        """Somebody sets the server's clock."""
        self.clock.step_ms(step_ms)
        self.clock_went_back = self.clock_went_back or step_ms < 0

    @rule()
    def remember(self) -> None:
        """What is on the server's disk from now on."""
        self._copy(0, EARLIER)
        self.earlier = copy.deepcopy((self.model, self.epochs))

    @precondition(lambda self: self.earlier)
    @rule()
    def roll_back(self) -> None:
        """The server dies and comes back with what was on its disk; all others go on with what they have in hand."""
        assert self.earlier
        self._copy(EARLIER, 0)
        self.model, self.epochs = copy.deepcopy(self.earlier)
        self.server_went_back = True

    def _copy(self, origin: int, target: int) -> None:
        pipe: Any = self.redis_client.pipeline()
        pipe.execute_command("SELECT", target)
        pipe.flushdb()
        pipe.execute_command("SELECT", origin)
        pipe.keys("*")
        *_, keys = pipe.execute()
        for key in keys:
            pipe.copy(key, key, target)
        pipe.execute_command("SELECT", 0)
        pipe.execute()

    @precondition(lambda self: self.model.quarantine)
    @rule(pick=picks, drops=chance)
    def replay(self, pick: int, drops: bool) -> None:
        id_ = sorted(self.model.quarantine)[pick % len(self.model.quarantine)]
        source, _, position = id_.rpartition(":")
        del self.model.quarantine[id_]
        if drops:
            assert self.ledger.drop([id_]) == 1
            return
        item = photo(source, int(position), stored_bytes=1, replay=True)
        row_gen = self.rows[id_]
        assert (
            self.ledger.replay(source, int(position), FIRST, encode([item]), 1, in_server=True, row_gen=row_gen) == "ok"
        )
        assert self.ledger.replay(source, int(position), FIRST, encode([item]), 1, in_server=True, row_gen=0) == "gone"
        bid = next(bid for bid in self._bids() if bid not in self.model.batches)
        self.model.replayed[id_] += 1
        self.model.admit(source, self.model.admitted[source], [child_of(bid, item)])

    def _bids(self) -> list[str]:
        ready: Any = self.redis_client.zrange(f"{PREFIX}ready:{FIRST}:bulk", 0, -1)
        return [bid.decode() for bid in ready]

    # ---- what must always hold

    @invariant()
    def balanced(self) -> None:
        book = read_book(self.redis_client)
        book.audit().raise_for_problems()
        assert book.b.keys() == self.model.batches.keys()
        assert book.quarantine.keys() == self.model.quarantine.keys()
        for bid, batch in self.model.batches.items():
            row = book.b[bid]
            assert (row["tier"].decode(), int(row["order"])) == (batch.tier, batch.order)
            assert (int(row["apart"]), int(row["claims"])) == (batch.apart, batch.claims)
            assert row.get("at") == (None if batch.at is None else str(batch.at).encode())
            match batch.place:
                case "ready":
                    assert bid in book.ready[batch.tier, batch.lane]
                case "later":
                    assert bid in book.later
                case owner, token:
                    assert book.own[owner][bid] == f"{token}:{batch.claimed_at}".encode()

    @invariant()
    def windows_are_the_models(self) -> None:
        for scope in ("all", "subnet"):
            ends = self.model.windows.cells[scope][-1000:]
            assert self.ledger.window(scope).decode() == "".join(cell for _, cell in ends)
            assert self.ledger.ring(scope) == [id_ for id_, _ in ends]
            assert self.ledger.totals(scope) == self.model.windows.counts[scope]

    def teardown(self) -> None:
        """Everybody who lives forgets what it held, and beats; then one fresh owner ends everything."""
        for owner in list(self.model.beats):
            for _ in range(2):
                self.ledger.heartbeat(owner, [])
                self.model.beat(owner, set())
        self.join()
        member = self.members[-1]
        for _ in range(1000):
            self.tick(1000)
            for stop in STOPS:
                while claimed := self.ledger.claim(stop, member.id, token := new_id(), 50).batches:
                    self.model.claim(member.id, token, claimed)
                    if stop == COLLECTOR:
                        self._commit(member, claimed, again_too=False)
                    else:
                        ends = [judged(item) for batch in claimed for item in decode_items(batch.blob)]
                        children = [verdict_batch(ends, claimed[0].lane)]
                        self.ledger.settle(member.id, claimed, children)
                        self.model.settle(claimed, children)
            if not self.model.batches:
                break
        self.balanced()
        self.windows_are_the_models()
        assert audit(self.redis_client).items == 0
        for source, end in self.model.admitted.items():
            for position in range(end):
                id_ = f"{source}:{position}"
                assert self.model.ended[id_] == 1 + self.model.replayed[id_], f"{id_} has no verdict, or several"


def is_verdicts(batch: Claimed) -> bool:
    """A batch of the collector's: its photos have ended."""
    try:
        decode_items(batch.blob)
    except Exception:  # noqa: BLE001 - whatever does not decode as items
        return True
    return False


def child_of(bid: str, item: Item) -> Child:
    """The batch that a replay wrote, by the id that the ledger gave it."""
    return Child(bid=bid, tier=FIRST, lane="bulk", n=1, stored_bytes=1, blob=encode([item]))


def test_any_order_of_moves_keeps_every_photo_once(redis_client: redis.Redis) -> None:
    """Expects the ledger to agree with the model after each move, and every admitted photo to end exactly once."""
    LedgerMachine.redis_client = redis_client
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
