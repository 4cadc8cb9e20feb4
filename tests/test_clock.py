"""The server's clock steps by an hour, forwards and backwards: nothing waits for it, nothing is refused for it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from configs.profile import ROUTE
from ops.server import EmbeddedServer
from routing.audit import audit
from routing.batches import again, item_batch
from routing.ledger import Ledger, new_id
from routing.messages import encode
from tests.ledgers import (
    FIRST,
    MANY,
    Clock,
    admit,
    collect,
    joined,
    photo,
    take,
    to_collector,
)
from tests.test_stops import Fleet, photos, sure
from workers.verdicts import VerdictDatabase

HOUR_MS = 3_600_000
#: As routing/lua/layout.lua says it.
LONGEST_WAIT_MS = 600_000


class SteppedClock:
    """A clock that runs, and was set by ``ahead_s``."""

    def __init__(self) -> None:
        self.ahead_s = 0

    def __call__(self) -> int:
        return time.time_ns() // 1000 + self.ahead_s * 1_000_000


@pytest.fixture
def stepped() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def fleet(server: EmbeddedServer, redis_client: Any, tmp_path: Path, stepped: SteppedClock) -> Iterator[Fleet]:
    """Two tiers and a collector at work, by a clock that a test sets."""
    with VerdictDatabase(f"sqlite:///{tmp_path / 'v.db'}") as database:
        fleet = Fleet(server, redis_client, database, clock_us=stepped)
        yield fleet
        for stop in fleet.started:
            stop.scorer.stop()
        audit(redis_client).raise_for_problems()


def offer(ledger: Ledger, epoch: int, position: int) -> list[str]:
    """Admits one photo; who must be rung."""
    children = [item_batch([photo("s", position)], FIRST, "bulk")]
    return ledger.admit("s", epoch, position, position + 1, "bulk", children, stored=[], max_items=MANY, max_bytes=MANY)


def test_an_attendant_of_an_hour_ahead_is_none(ledger: Ledger, clock: Clock) -> None:
    """Expects a stop whose attendant's time is nonsense since the clock went back to be rung at once."""
    owner = joined(ledger)
    epoch, _ = ledger.open("s", "bulk")
    ledger.claim(FIRST, owner, new_id(), MANY, attend_ms=20)
    clock.step_ms(-HOUR_MS)
    assert offer(ledger, epoch, 0) == [FIRST]


def test_a_back_off_never_outlasts_the_longest_one(ledger: Ledger, clock: Clock) -> None:
    """Expects a batch whose time is an hour ahead to be ready at once, and one of a smaller step within the bound."""
    admit(ledger, "s", 4)
    owner = joined(ledger)

    def back_off() -> None:
        (batch,) = take(ledger, owner)
        ledger.settle(owner, [batch], [again(batch, FIRST, clock.now_ms + 1000)])
        assert take(ledger, owner) == []

    back_off()
    clock.step_ms(-HOUR_MS)
    back_off()
    clock.step_ms(-HOUR_MS)
    assert ledger.tick([FIRST]).ready == {FIRST: 1}
    back_off()
    clock.step_ms(-LONGEST_WAIT_MS // 2)
    assert take(ledger, owner) == []
    clock.step_ms(LONGEST_WAIT_MS // 2 + 1000)
    assert len(take(ledger, owner)) == 1


def test_a_back_off_is_written_no_longer_than_the_longest_one(ledger: Ledger, clock: Clock) -> None:
    """Expects a batch that is to wait for an hour to wait for the longest back-off: neither an hour nor not at all."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    (batch,) = take(ledger, owner)
    ledger.settle(owner, [batch], [again(batch, FIRST, clock.now_ms + HOUR_MS)])
    assert take(ledger, owner) == []
    clock.step_ms(LONGEST_WAIT_MS - 1)
    assert take(ledger, owner) == []
    clock.step_ms(1)
    assert len(take(ledger, owner)) == 1


@pytest.mark.parametrize("waiting", [1, 3])
def test_a_gap_is_gone_over_in_time_after_the_clock_went_back(
    ledger: Ledger, clock: Clock, redis_client: redis.Redis, waiting: int
) -> None:
    """Expects verdicts that wait for a position to wait late_after_ms from when the step was seen, not an hour more."""
    owner = joined(ledger)
    admit(ledger, "s", 9, size=1)
    batches = take(ledger, owner)
    for i in range(waiting):
        # Position 0 stays out, so do those between: as many gaps.
        to_collector(ledger, owner, [batches[2 * i + 1]])
        collect(ledger, owner, late_after_ms=1000)
    clock.step_ms(-HOUR_MS)
    to_collector(ledger, owner, [batches[7]])
    assert collect(ledger, owner, late_after_ms=1000).released == {}
    clock.step_ms(1001)
    to_collector(ledger, owner, [batches[8]])
    collect(ledger, owner, late_after_ms=1000)
    assert ledger.ring("all") == [f"s:{2 * i + 1}" for i in range(waiting)] + ["s:7", "s:8"]
    audit(redis_client).raise_for_problems()


def test_generations_grow_whatever_the_clock_does(ledger: Ledger, clock: Clock) -> None:
    """Expects a child's generation beyond its parent's, and a replay's beyond that of the row that it replaces."""
    admit(ledger, "s", 1)
    owner = joined(ledger)
    (batch,) = take(ledger, owner)
    clock.step_ms(-HOUR_MS)
    ledger.settle(owner, [batch], [again(batch, FIRST, 0)])
    (later,) = take(ledger, owner)
    assert later.gen == batch.gen + 1
    to_collector(ledger, owner, [later], None)
    collect(ledger, owner)
    row_gen = later.gen + 1
    blob = encode([photo("s", 0, replay=True)])
    assert ledger.replay("s", 0, FIRST, blob, 0, in_server=False, row_gen=row_gen) == "ok"
    (replayed,) = take(ledger, owner)
    assert replayed.gen == row_gen + 1


def test_a_step_forward_makes_every_deadline_overdue(ledger: Ledger, clock: Clock) -> None:
    """Expects what has a deadline at `route` with the next tick, the rest where it was; a back-off ends."""
    owner = joined(ledger)
    admit(ledger, "s", 4, deadline_ms=clock.now_ms + 60_000)
    (batch,) = take(ledger, owner)
    ledger.settle(owner, [batch], [item_batch([photo("s", i) for i in range(4)], FIRST, "bulk", clock.now_ms + 5000)])
    admit(ledger, "s", 8, deadline_ms=clock.now_ms + 60_000)
    clock.step_ms(HOUR_MS)
    assert ledger.tick([FIRST]).ready == {FIRST: 1}
    assert [batch.n for batch in take(ledger, owner, ROUTE)] == [4]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_fleet_at_work_drains_across_a_step(fleet: Fleet, stepped: SteppedClock, hours: int) -> None:
    """Expects photos in every state, those backing off among them, to end once, in order, rows equal to windows."""
    failing = {40}

    def first(position: int) -> float:
        if position in failing:
            failing.discard(position)
            raise RuntimeError("once")
        return 0.0 if position % 4 == 0 else sure(position)

    fleet.admit(photos(96))
    tier = fleet.tier("first", first)
    while failing:
        claim = fleet.owner.claim("first", 16)
        tier.work(claim)
        fleet.owner.release(claim)
    claim = fleet.owner.claim("first", 16)
    fleet.ledger.settle(
        claim.owner, claim.batches, [again(b, "first", claim.now_us // 1000 + 500) for b in claim.batches]
    )
    fleet.owner.release(claim)
    fleet.collector.serve()
    stepped.ahead_s += hours * 3600
    begun_s = time.monotonic()
    fleet.drain(first, sure)
    assert time.monotonic() - begun_s < 20
    rows = fleet.rows("s-1")
    assert sorted(rows) == list(range(96))
    assert all(row["p"] is not None for row in rows.values())
    assert fleet.ledger.ring("all") == [f"s-1:{i}" for i in range(96)]
    assert fleet.database.recount()["all"].n == 96


def test_a_replay_replaces_its_void_after_the_clock_went_back(fleet: Fleet, stepped: SteppedClock) -> None:
    """Expects the verdict of a replayed photo in its row, although the void before it is an hour ahead."""
    fleet.admit([photos(1, origin="bad")[0]])
    fleet.drain(sure, sure)
    void = fleet.rows("s-1")[0]
    assert void["p"] is None
    stepped.ahead_s -= 3600
    blob = encode([photos(1, replay=True)[0]])
    assert fleet.ledger.replay("s-1", 0, "first", blob, 0, in_server=False, row_gen=void["gen"]) == "ok"
    fleet.drain(sure, sure)
    assert fleet.rows("s-1")[0]["p"] is not None


def test_deadlines_settle_by_votes_across_a_step_forward(fleet: Fleet, stepped: SteppedClock) -> None:
    """Expects photos with deadlines to end by the votes that they have, the others as if nothing had happened."""
    now_ms = stepped() // 1000
    fleet.admit(photos(8, deadline_ms=now_ms + 600_000))
    tier = fleet.tier("first", lambda _: 0.0)
    claim = fleet.owner.claim("first", 16)
    tier.work(claim)
    fleet.owner.release(claim)
    fleet.admit(photos(8, source="s-2"))
    stepped.ahead_s += 3600
    fleet.ledger.tick(["first", "second", "collector"])
    fleet.drain(sure, sure)
    assert {(row["reason"], len(row["votes"])) for row in fleet.rows("s-1").values()} == {("deadline", 1)}
    assert {row["reason"] for row in fleet.rows("s-2").values()} == {""}
