"""The ledger in odd conditions: no memory, thousands at once, scripts forgotten, a stop attended, a batch deleted."""

from collections.abc import Iterator

import pytest
import redis

from routing.audit import audit
from routing.batches import item_batch, verdict_batch
from routing.ledger import PREFIX, Ledger, new_id
from routing.messages import encode
from tests.ledgers import FIRST, MANY, SECOND, Clock, admit, collect, joined, judged, photo, photos, take


@pytest.fixture
def full(redis_client: redis.Redis) -> Iterator[redis.Redis]:
    """The same server, which calls itself full once ``config_set`` lowers its bound."""
    yield redis_client
    redis_client.config_set("maxmemory", 0)


def test_a_full_server_admits_nothing_and_finishes_everything(ledger: Ledger, full: redis.Redis, clock: Clock) -> None:
    """Expects admit, open and replay to fail, and each verb on a photo's way out, with all who beat, to go on."""
    admit(ledger, "s", 4)
    worker, other = joined(ledger), joined(ledger)
    admit(ledger, "void", 1)
    (bad,) = [batch for batch in take(ledger, worker) if batch.n == 1]
    ledger.settle(worker, [bad], [verdict_batch([judged(photo("void", 0), None)], "bulk")])
    collect(ledger, worker)
    epoch, _ = ledger.open("s", "bulk")
    for _ in range(2):
        ledger.heartbeat(worker, [])
    full.config_set("maxmemory", 1)

    children = [item_batch(photos("s", 4, 8), FIRST, "bulk")]
    with pytest.raises(redis.OutOfMemoryError):
        ledger.admit("s", epoch, 4, 8, "bulk", children, stored=[], max_items=MANY, max_bytes=MANY)
    with pytest.raises(redis.OutOfMemoryError):
        ledger.open("s", "bulk")
    with pytest.raises(redis.OutOfMemoryError):
        ledger.replay("void", 0, FIRST, encode([photo("void", 0, replay=True)]), 0, in_server=False, row_gen=0)

    # A server that restarted full forgot its scripts: they must load.
    full.script_flush()
    latecomer = new_id()
    ledger.enlist(latecomer, "profile")
    take(ledger, worker)
    ledger.reap(worker, 2)
    (batch,) = take(ledger, other)
    ledger.mark(other, batch, 0)
    ledger.heartbeat(other, [batch.token])
    ledger.settle(
        other, [batch], [item_batch(photos("s", 0, 4), SECOND, "bulk", clock.now_ms + 5)], FIRST, {"scored": 4}
    )
    clock.step_ms(5)
    ledger.tick([FIRST, SECOND])
    ledger.leave(latecomer)
    ledger.settle(
        other, take(ledger, other, SECOND), [verdict_batch([judged(item) for item in photos("s", 0, 4)], "bulk")]
    )
    assert collect(ledger, other).released["all"] == b"3333"
    ledger.close("s", epoch, 4)
    assert ledger.drop(["void:0"]) == 1
    audit(full).raise_for_problems()
    assert full.hget(PREFIX + "src:s", "offset") == b"4"


def test_thousands_of_photos_go_through_one_call(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects no bound of Lua's stack at admit's check of bytes, nor at commit's lists."""
    items = photos("s", 0, 9000, stored_bytes=1)
    epoch, _ = ledger.open("s", "bulk")
    redis_client.mset({f"{PREFIX}img:{item.id}": b"x" for item in items})
    children = [item_batch(items, FIRST, "bulk")]
    ledger.admit("s", epoch, 0, 9000, "bulk", children, stored=list(range(9000)), max_items=MANY, max_bytes=MANY)
    owner = joined(ledger)
    verdicts = [judged(item, None if item.position % 2 else 0.9) for item in items]
    ledger.settle(owner, take(ledger, owner), [verdict_batch(verdicts, "bulk")])
    assert len(collect(ledger, owner).released["subnet"]) == 9000
    assert redis_client.zcard(PREFIX + "voids") == 4500
    audit(redis_client).raise_for_problems()


def test_scripts_come_back_after_the_server_forgot_them(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects a server that restarted, its script cache empty, to be no error."""
    redis_client.script_flush()
    admit(ledger, "s", 4)
    assert audit(redis_client).items == 4


def test_an_attended_stop_is_not_rung(ledger: Ledger, clock: Clock) -> None:
    """Expects no doorbell for a stop that somebody looks at anyway, until the time that he said, or his last word."""
    owner = joined(ledger)
    epoch, _ = ledger.open("s", "bulk")

    def offer(position: int) -> list[str]:
        children = [item_batch([photo("s", position)], FIRST, "bulk")]
        return ledger.admit(
            "s", epoch, position, position + 1, "bulk", children, stored=[], max_items=MANY, max_bytes=MANY
        )

    ledger.claim(FIRST, owner, new_id(), MANY, attend_ms=100)
    assert offer(0) == []
    ledger.claim(FIRST, owner, new_id(), MANY)
    clock.step_ms(101)
    assert offer(1) == [FIRST]
    ledger.claim(FIRST, owner, new_id(), MANY, attend_ms=100)
    ledger.claim(FIRST, owner, new_id(), MANY, attend_ms=0)
    assert offer(2) == [FIRST]


def test_a_batch_deleted_by_hand_does_not_stop_its_tier(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects the next batch to be claimed, the loss to be counted, and the audit to say what is gone."""
    first, second = admit(ledger, "s", 8)
    redis_client.delete(PREFIX + "b:" + first.bid)
    assert [batch.bid for batch in take(ledger, joined(ledger))] == [second.bid]
    assert redis_client.hget(PREFIX + "acct", "dangling") == b"1"
    assert any("4 positions are nowhere" in problem for problem in audit(redis_client).problems)
