"""Settle and its fence; heartbeats, reaping, and running apart."""

from collections.abc import Iterator

import pytest
import redis

from routing.audit import audit
from routing.batches import again, item_batch, verdict_batch
from routing.ledger import PREFIX, Ledger, new_id
from routing.messages import Claimed, decode_items
from routing.refusals import Lost, OwnerDead
from tests.ledgers import FIRST, SECOND, Clock, admit, field, joined, judged, photos, take, to_collector


@pytest.fixture(autouse=True)
def _audited(redis_client: redis.Redis) -> Iterator[None]:
    yield
    audit(redis_client).raise_for_problems()


def test_settle_writes_the_children_in_the_parents_place(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects parents gone, children ready with the oldest parent's order, and their stops to be rung once."""
    admit(ledger, "s", 8)
    owner = joined(ledger)
    parents = take(ledger, owner)
    children = [
        item_batch(photos("s", 0, 5), SECOND, "bulk"),
        verdict_batch([judged(item) for item in photos("s", 5, 8)], "bulk"),
    ]
    assert ledger.settle(owner, parents, children) == [SECOND, "collector"]
    (climbed,) = take(ledger, owner, SECOND)
    assert (climbed.order, climbed.n, climbed.claims) == (0, 5, 1)
    assert not any(redis_client.exists(PREFIX + "b:" + parent.bid) for parent in parents)


def test_settle_asked_again_is_gone(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects the second of two equal settles to be refused, with nothing written."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    parents = take(ledger, owner)
    to_collector(ledger, owner, parents)
    with pytest.raises(Lost) as refused:
        to_collector(ledger, owner, parents)
    assert refused.value.bids == {parents[0].bid}
    assert audit(redis_client).items == 4
    assert field(redis_client, "acct", "fenced") == 0


def test_settle_is_fenced_after_the_batch_was_given_to_another(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects a reaped owner's settles to be refused, while the batch waits and while another holds it."""
    admit(ledger, "s", 8)
    slow, other = joined(ledger), joined(ledger)
    parents = take(ledger, slow)
    gone = parents[0]
    redis_client.hset(PREFIX + "owners", slow, 7)
    ledger.reap(slow, 7)
    with pytest.raises(Lost) as refused:
        to_collector(ledger, slow, parents)
    assert refused.value.bids == {parent.bid for parent in parents}
    (first,) = take(ledger, other)
    with pytest.raises(Lost):
        to_collector(ledger, slow, [gone])
    assert (first.bid, first.apart) == (gone.bid, True)
    to_collector(ledger, other, [first])
    assert field(redis_client, "acct", "fenced") == 2


def test_settle_again_without_the_lost_parent_goes_through(ledger: Ledger) -> None:
    """Expects the parents of a merged batch that are still held to settle on their own."""
    admit(ledger, "s", 8)
    owner = joined(ledger)
    first, second = take(ledger, owner)
    to_collector(ledger, owner, [first])
    with pytest.raises(Lost) as refused:
        to_collector(ledger, owner, [first, second])
    assert refused.value.bids == {first.bid}
    to_collector(ledger, owner, [second])


def test_a_token_fences_its_own_owner_too(ledger: Ledger) -> None:
    """Expects a batch that came back to the same owner under a new token to be settled under that one only."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    (old,) = take(ledger, owner)
    for _ in range(2):
        ledger.heartbeat(owner, [])
    (new,) = take(ledger, owner)
    assert new.bid == old.bid
    with pytest.raises(Lost):
        to_collector(ledger, owner, [old])
    to_collector(ledger, owner, [new])


def test_settle_refuses_children_that_do_not_hold_the_parents_items(ledger: Ledger) -> None:
    """Expects a caller's mistake to be an error, with the parents still held, and not a photo lost."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    parents = take(ledger, owner)
    with pytest.raises(ValueError, match="3 items, in place of 4"):
        ledger.settle(owner, parents, [item_batch(photos("s", 0, 3), SECOND, "bulk")])
    to_collector(ledger, owner, parents)


def test_a_parent_named_twice_counts_once(ledger: Ledger) -> None:
    """Expects a merged batch whose parents repeat to settle as one of each."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    (parent,) = take(ledger, owner)
    children = [item_batch(photos("s", 0, 4), SECOND, "bulk")]
    ledger.settle(owner, [parent, parent], children)


def test_back_off_hides_a_batch_until_it_is_due(ledger: Ledger, clock: Clock) -> None:
    """Expects a child with a not-before to be claimed no earlier, at its old order."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    (batch,) = take(ledger, owner)
    ledger.settle(owner, [batch], [again(batch, FIRST, clock.now_ms + 100)])
    admit(ledger, "s", 8)
    clock.step_ms(99)
    ledger.tick([FIRST])
    assert [b.order for b in take(ledger, owner)] == [4]
    clock.step_ms(1)
    assert [b.order for b in take(ledger, owner)] == [0]


def test_a_thousand_parents_and_children_settle_in_one_call(ledger: Ledger) -> None:
    """Expects no bound of Lua's stack: more than 8,000 arguments either way."""
    admit(ledger, "s", 3000, size=1)
    owner = joined(ledger)
    parents = take(ledger, owner)
    assert len(parents) == 3000
    children = [item_batch([item], SECOND, "bulk") for item in photos("s", 0, 3000)]
    ledger.settle(owner, parents, children)
    assert len(take(ledger, owner, SECOND)) == 3000


def test_heartbeat_refuses_a_dead_owner(ledger: Ledger) -> None:
    """Expects an owner that was reaped to learn it at its next beat."""
    owner = joined(ledger)
    assert ledger.reap(owner, 0) == 0
    with pytest.raises(OwnerDead):
        ledger.heartbeat(owner, [])


def test_a_claim_nobody_heard_of_goes_back_after_two_beats(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects reconciliation by the second beat, without a fault; the first may have been on its way already."""
    admit(ledger, "s", 4)
    owner, other = joined(ledger), joined(ledger)
    take(ledger, owner)
    ledger.heartbeat(owner, [])
    assert take(ledger, other) == []
    ledger.heartbeat(owner, [])
    (batch,) = take(ledger, other)
    assert (batch.apart, batch.deaths) == (False, {})
    assert field(redis_client, "acct", "reconciled") == 1


def test_held_tokens_stay_held(ledger: Ledger) -> None:
    """Expects a claim to stay with its owner as long as each beat names it."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    (batch,) = take(ledger, owner)
    for _ in range(5):
        ledger.heartbeat(owner, [batch.token, "lost"])
    to_collector(ledger, owner, [batch])


def test_reap_refuses_an_owner_that_beat_since(ledger: Ledger) -> None:
    """Expects alive, twice over: the beat moved, and the owner is unknown."""
    owner = joined(ledger)
    ledger.heartbeat(owner, [])
    assert ledger.reap(owner, 0) is None
    assert ledger.reap(new_id(), 0) is None
    assert ledger.reap(owner, 1) == 0
    assert ledger.reap(owner, 1) is None


def test_reaped_batches_keep_their_place_and_run_apart(ledger: Ledger) -> None:
    """Expects a dead owner's batches at the head of the list again, handed out one by one."""
    admit(ledger, "s", 8)
    owner = joined(ledger)
    take(ledger, owner)
    admit(ledger, "s", 12)
    assert ledger.reap(owner, 0) == 2
    other = joined(ledger)
    claims = [take(ledger, other) for _ in range(3)]
    assert [[(batch.order, batch.apart) for batch in claim] for claim in claims] == [
        [(0, True)],
        [(4, True)],
        [(8, False)],
    ]


def _die(ledger: Ledger, at: int | None) -> Claimed:
    """An owner claims, writes down where it is, and dies."""
    owner = joined(ledger)
    (batch,) = take(ledger, owner, max_items=1)
    if at is not None:
        ledger.mark(owner, batch, at)
    ledger.reap(owner, 0)
    return batch


def test_a_death_apart_is_a_fault_of_the_item_it_was_at(ledger: Ledger) -> None:
    """Expects deaths to be counted per item, from the first run apart on."""
    admit(ledger, "s", 4)
    _die(ledger, None)
    _die(ledger, 2)
    _die(ledger, 2)
    _die(ledger, 0)
    _die(ledger, None)
    (batch,) = take(ledger, joined(ledger))
    assert batch.deaths == {2: 2, 0: 1}
    assert batch.claims == 6


def test_an_owner_that_ends_in_order_leaves_no_fault_behind(ledger: Ledger) -> None:
    """Expects the next owner's death before it began not to count for the item that the first was at."""
    admit(ledger, "s", 4)
    _die(ledger, None)
    owner = joined(ledger)
    (batch,) = take(ledger, owner)
    ledger.mark(owner, batch, 3)
    ledger.leave(owner)
    _die(ledger, None)
    (batch,) = take(ledger, joined(ledger))
    assert batch.deaths == {}
    assert [item.position for item in decode_items(batch.blob)] == [0, 1, 2, 3]


def test_mark_is_fenced(ledger: Ledger) -> None:
    """Expects an owner that lost its batch to stop before it runs the next item."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    (batch,) = take(ledger, owner)
    ledger.reap(owner, 0)
    with pytest.raises(Lost):
        ledger.mark(owner, batch, 1)
    other = joined(ledger)
    (mine,) = take(ledger, other)
    to_collector(ledger, other, [mine])
    with pytest.raises(Lost):
        ledger.mark(other, mine, 1)
