"""The ledger's verbs: what each does, what it refuses, and that asking again changes nothing."""

from collections.abc import Iterator

import pytest
import redis

from configs.profile import COLLECTOR, ROUTE
from routing.audit import audit
from routing.batches import item_batch
from routing.ledger import PREFIX, Ledger, new_id
from routing.messages import decode_items
from routing.refusals import Full, Lost, Misplaced, Missing, OtherProfile, OwnerDead, Zombie
from tests.ledgers import FIRST, MANY, SECOND, Clock, admit, commit, field, joined, photo, photos, take, to_collector


@pytest.fixture(autouse=True)
def _audited(redis_client: redis.Redis) -> Iterator[None]:
    yield
    audit(redis_client).raise_for_problems()


def positions(batches: object) -> list[int]:
    """Where the items of batches stand."""
    return [item.position for batch in batches for item in decode_items(batch.blob)]  # type: ignore[attr-defined]


def offer(ledger: Ledger, epoch: int, start: int, end: int, **bounds: int) -> list[str]:
    """Admits [start, end) of source s as one batch."""
    children = [item_batch(photos("s", start, end, stored_bytes=10), FIRST, "bulk")]
    limits = {"max_items": MANY, "max_bytes": MANY, **bounds}
    return ledger.admit("s", epoch, start, end, "bulk", children, stored=[], **limits)


def test_admit_moves_the_offset_and_says_whom_to_ring(ledger: Ledger) -> None:
    """Expects the stop to be woken by the first batch only, and the next epoch to go on from the offset."""
    epoch, offset = ledger.open("s", "bulk")
    assert offset == 0
    assert offer(ledger, epoch, 0, 3) == [FIRST]
    assert offer(ledger, epoch, 3, 5) == []
    assert ledger.open("s", "bulk") == (epoch + 1, 5)


def test_admit_asked_again_is_done_once(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects the same answer and no second batch when the reply to an admit was lost."""
    epoch, _ = ledger.open("s", "bulk")
    assert offer(ledger, epoch, 0, 3) == offer(ledger, epoch, 0, 3) == [FIRST]
    assert audit(redis_client).items == 3


def test_admit_refuses_a_zombie(ledger: Ledger) -> None:
    """Expects whoever opened the source earlier to be refused, at admit and at close."""
    epoch, _ = ledger.open("s", "bulk")
    ledger.open("s", "bulk")
    with pytest.raises(Zombie):
        offer(ledger, epoch, 0, 3)
    with pytest.raises(Zombie):
        ledger.close("s", epoch, 0)


def test_admit_refuses_an_unopened_source(ledger: Ledger) -> None:
    """Expects a source that the server does not know (any more) to be opened first."""
    with pytest.raises(Zombie):
        offer(ledger, 1, 0, 3)


def test_admit_refuses_a_gap_and_an_overlap(ledger: Ledger) -> None:
    """Expects the offset to go on from when positions are not the next ones."""
    epoch, _ = ledger.open("s", "bulk")
    offer(ledger, epoch, 0, 3)
    for start, end in ((4, 6), (1, 4)):
        with pytest.raises(Misplaced) as refused:
            offer(ledger, epoch, start, end)
        assert refused.value.offset == 3


def test_admit_refuses_beyond_its_bounds(ledger: Ledger) -> None:
    """Expects items and bytes to be bounded, except in an empty fleet, which takes any batch."""
    epoch, _ = ledger.open("s", "bulk")
    offer(ledger, epoch, 0, 5, max_items=4, max_bytes=1)
    for bounds in ({"max_items": 5}, {"max_bytes": 59}):
        with pytest.raises(Full) as refused:
            offer(ledger, epoch, 5, 6, **bounds)
        assert (refused.value.items, refused.value.stored_bytes) == (5, 50)
    offer(ledger, epoch, 5, 6, max_items=6, max_bytes=60)


def test_admit_refuses_when_bytes_are_missing(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects nothing written and no TTL lifted when one photo's bytes are gone, and all lifted when all are there."""
    epoch, _ = ledger.open("s", "bulk")
    children = [item_batch(photos("s", 0, 2, stored_bytes=1), FIRST, "bulk")]
    redis_client.set(PREFIX + "img:s:0", b"x", ex=100)

    def ask() -> list[str]:
        return ledger.admit("s", epoch, 0, 2, "bulk", children, stored=[0, 1], max_items=9, max_bytes=9)

    with pytest.raises(Missing) as refused:
        ask()
    assert refused.value.position == 1
    assert redis_client.ttl(PREFIX + "img:s:0") > 0
    assert field(redis_client, "src:s", "offset") == 0
    redis_client.set(PREFIX + "img:s:1", b"x", ex=100)
    ask()
    assert [redis_client.ttl(f"{PREFIX}img:s:{i}") for i in (0, 1)] == [-1, -1]


def test_admit_refuses_batches_that_do_not_hold_its_positions(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects a caller's mistake to be an error, with nothing written, and not a photo lost."""
    epoch, _ = ledger.open("s", "bulk")
    children = [item_batch(photos("s", 0, 2), FIRST, "bulk")]
    with pytest.raises(ValueError, match="2 items, in place of 3"):
        ledger.admit("s", epoch, 0, 3, "bulk", children, stored=[], max_items=9, max_bytes=9)
    assert audit(redis_client).items == 0


def test_close_refuses_a_source_that_stands_elsewhere(ledger: Ledger) -> None:
    """Expects a producer that is done to hear that the server went back in time behind it."""
    epoch, _ = ledger.open("s", "bulk")
    with pytest.raises(Misplaced) as caught:
        ledger.close("s", epoch, 3)
    assert caught.value.offset == 0


def test_a_closed_source_is_open_again_after_open(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects close to be written down, and open to take it back."""
    epoch, _ = ledger.open("s", "bulk")
    ledger.close("s", epoch, 0)
    assert redis_client.hexists(PREFIX + "src:s", "closed")
    ledger.open("s", "bulk")
    assert not redis_client.hexists(PREFIX + "src:s", "closed")


def test_positions_beyond_32_bits_stay_whole(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects large positions to be numbers to the last digit, through admit, window and counts."""
    start = 123_456_789_012_345
    epoch, _ = ledger.open("s", "bulk")
    redis_client.hset(PREFIX + "src:s", mapping={"offset": start, "next": start})
    redis_client.hincrby(PREFIX + "acct", "admitted", start)
    redis_client.hincrby(PREFIX + "acct", "verdicts", start)
    children = [item_batch(photos("s", start, start + 2), FIRST, "bulk")]
    redis_client.mset({f"{PREFIX}img:s:{start + i}": b"x" for i in (0, 1)})
    ledger.admit("s", epoch, start, start + 2, "bulk", children, stored=[start, start + 1], max_items=9, max_bytes=9)
    redis_client.delete(*(f"{PREFIX}img:s:{start + i}" for i in (0, 1)))
    owner = joined(ledger)
    to_collector(ledger, owner, take(ledger, owner))
    commit(ledger, owner, take(ledger, owner, COLLECTOR))
    assert ledger.ring("all") == [f"s:{start}", f"s:{start + 1}"]
    assert ledger.open("s", "bulk")[1] == start + 2


def test_claim_hands_out_the_oldest_first_up_to_its_bound(ledger: Ledger) -> None:
    """Expects batches by age, never more items than asked for, but always one batch, and what is left."""
    admit(ledger, "s", 12)
    owner = joined(ledger)
    claim = ledger.claim(FIRST, owner, new_id(), 8)
    assert (positions(claim.batches), claim.left) == (list(range(8)), 4)
    assert positions(take(ledger, owner, max_items=1)) == [8, 9, 10, 11]
    assert take(ledger, owner) == []


def test_claim_asked_again_under_its_token_gives_the_same(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects a claim whose reply was lost to return the same batches, and to count as one claim."""
    admit(ledger, "s", 12)
    owner, token = joined(ledger), new_id()
    once, again = (ledger.claim(FIRST, owner, token, 8) for _ in range(2))
    assert sorted(batch.bid for batch in once.batches) == sorted(batch.bid for batch in again.batches)
    assert [batch.claims for batch in again.batches] == [1, 1]
    assert field(redis_client, "use", "held:" + FIRST) == 8


def test_claim_refuses_an_unknown_owner(ledger: Ledger) -> None:
    """Expects an owner that never joined, or left, to be told that it is dead."""
    with pytest.raises(OwnerDead):
        take(ledger, new_id())
    owner = joined(ledger)
    ledger.leave(owner)
    with pytest.raises(OwnerDead):
        take(ledger, owner)


def test_live_goes_first_and_bulk_keeps_its_share(ledger: Ledger) -> None:
    """Expects one claim in five to serve bulk first while live work waits too."""
    admit(ledger, "b", 40)
    admit(ledger, "l", 40, lane="live")
    owner = joined(ledger)
    lanes = [ledger.claim(FIRST, owner, new_id(), 4, bulk_share=0.2).batches[0].lane for _ in range(10)]
    assert (lanes.count("bulk"), lanes.count("live")) == (2, 8)
    none = [ledger.claim(FIRST, owner, new_id(), 4, bulk_share=0).batches[0].lane for _ in range(2)]
    assert none == ["live", "live"]


def test_a_claim_is_of_one_lane(ledger: Ledger) -> None:
    """Expects live and bulk work never in one claim: what comes of it would be in the wrong lane."""
    admit(ledger, "b", 4)
    admit(ledger, "l", 4, lane="live")
    owner = joined(ledger)
    assert [batch.lane for batch in take(ledger, owner)] == ["live"]
    assert [batch.lane for batch in take(ledger, owner)] == ["bulk"]


def test_enlist_refuses_another_profile(ledger: Ledger) -> None:
    """Expects one profile at a time, and any profile once nobody lives."""
    owner = joined(ledger)
    with pytest.raises(OtherProfile) as refused:
        ledger.enlist(new_id(), "another")
    assert refused.value.digest == "profile"
    ledger.leave(owner)
    ledger.enlist(new_id(), "another")


def test_the_gen_of_a_verdict_grows_although_the_clock_went_back(ledger: Ledger, clock: Clock) -> None:
    """Expects a child's generation to be the time of its settle, and at least one more than its parent's."""
    admit(ledger, "s", 4)
    admitted_us, owner = clock.now_us, joined(ledger)
    clock.step_ms(-5000)
    (batch,) = take(ledger, owner)
    assert batch.gen == admitted_us
    to_collector(ledger, owner, [batch])
    assert take(ledger, owner, COLLECTOR)[0].gen == admitted_us + 1


def test_a_tick_shows_what_is_ready_and_all_beats(ledger: Ledger) -> None:
    """Expects batches by stop, dry ones too, and the beat of every owner."""
    admit(ledger, "s", 8)
    owner = joined(ledger)
    ledger.heartbeat(owner, [])
    tick = ledger.tick([FIRST, SECOND, COLLECTOR])
    assert tick.ready == {FIRST: 2, SECOND: 0, COLLECTOR: 0}
    assert tick.beats == {owner: 1}


def test_an_overdue_batch_goes_to_route(ledger: Ledger, clock: Clock) -> None:
    """Expects a batch past its earliest deadline to be routed when it waits, and left to its owner while it is held."""
    admit(ledger, "s", 4, deadline_ms=clock.now_ms + 100)
    owner = joined(ledger)
    ledger.tick([FIRST])
    assert take(ledger, owner, ROUTE) == []
    (held,) = take(ledger, owner)
    clock.step_ms(100)
    ledger.tick([FIRST])
    assert take(ledger, owner, ROUTE) == []
    ledger.leave(owner)
    owner = joined(ledger)
    ledger.tick([FIRST])
    (routed,) = take(ledger, owner, ROUTE)
    assert (routed.bid, routed.order) == (held.bid, held.order)


def test_an_overdue_batch_in_back_off_goes_to_route(ledger: Ledger, clock: Clock) -> None:
    """Expects back-off to be no hiding place from a deadline."""
    admit(ledger, "s", 1)
    owner = joined(ledger)
    batches, late = take(ledger, owner), clock.now_ms + 60_000
    ledger.settle(
        owner, batches, [item_batch([photo("s", 0, deadline_ms=clock.now_ms + 5)], FIRST, "bulk", not_before_ms=late)]
    )
    clock.step_ms(5)
    ledger.tick([FIRST])
    assert positions(take(ledger, owner, ROUTE)) == [0]


def test_batches_of_an_unknown_tier_go_to_route(ledger: Ledger) -> None:
    """Expects a tier that the profile has no more to be routed, in both lanes, and verdicts never to be."""
    admit(ledger, "s", 4, tier="old")
    admit(ledger, "l", 4, tier="old", lane="live")
    admit(ledger, "v", 4)
    owner = joined(ledger)
    to_collector(ledger, owner, take(ledger, owner))
    ledger.tick([FIRST])
    routed = [*take(ledger, owner, ROUTE), *take(ledger, owner, ROUTE)]
    assert [(batch.lane, batch.came_from) for batch in routed] == [("live", "old"), ("bulk", "old")]
    assert len(take(ledger, owner, COLLECTOR)) == 1


def test_the_snapshot_counts_by_name(ledger: Ledger) -> None:
    """Expects what is where, for people, with the tallies that settle added."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    batches = take(ledger, owner)
    ledger.settle(owner, batches, [item_batch(photos("s", 0, 4), SECOND, "bulk")], FIRST, {"scored": 4, "device_us": 7})
    snapshot = ledger.snapshot([FIRST, SECOND])
    assert snapshot.owners == 1
    assert snapshot.use["ready:" + SECOND] == 4
    assert snapshot.account["admitted"] == 4
    assert snapshot.tallies[FIRST] == {"scored": 4, "device_us": 7}


def test_a_lost_owner_cannot_settle(ledger: Ledger) -> None:
    """Expects a batch that was never claimed to be fenced, and one that never existed to be gone."""
    admit(ledger, "s", 4)
    owner = joined(ledger)
    (batch,) = take(ledger, owner)
    with pytest.raises(Lost):
        to_collector(ledger, joined(ledger), [batch])
