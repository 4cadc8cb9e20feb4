"""The audit must be able to complain: each kind of damage, done by hand, is named."""

import pytest
import redis

from configs.profile import COLLECTOR
from routing.audit import audit
from routing.ledger import PREFIX, Ledger
from routing.messages import encode
from tests.ledgers import FIRST, Clock, admit, collect, joined, photos, take, to_collector


@pytest.fixture
def bid(ledger: Ledger, clock: Clock) -> str:
    """One ready batch of four, one held, one verdict batch committed before them."""
    owner = joined(ledger)
    admit(ledger, "s", 4)
    to_collector(ledger, owner, take(ledger, owner))
    collect(ledger, owner)
    admit(ledger, "s", 12, deadline_ms=clock.now_ms + 1000)
    take(ledger, owner, max_items=4)
    return take(ledger, joined(ledger), max_items=0)[0].bid


def complaints(client: redis.Redis) -> str:
    """The audit's problems, one a line."""
    return "\n".join(audit(client).problems)


def test_a_sound_ledger_has_no_problem(redis_client: redis.Redis, bid: str) -> None:
    """Expects nothing to complain about, and the counts that a person may want."""
    found = audit(redis_client)
    found.raise_for_problems()
    assert (bool(bid), found.items, found.admitted, found.ended) == (True, 8, 12, 4)


def test_a_removed_batch_is_missed(redis_client: redis.Redis, bid: str) -> None:
    """Expects its place, its deadline, its positions, the balance and the counts to be named."""
    redis_client.delete(PREFIX + "b:" + bid)
    problems = complaints(redis_client)
    for sentence in (
        f"names batch {bid}, which does not exist",
        f"due names batch {bid}",
        "source s: 4 positions are nowhere, such as [8, 9, 10, 11]",
        "admitted 12 is not verdicts 4 + quarantined 0 + 4 items in batches",
        "use says items = 8, a recount 4",
    ):
        assert sentence in problems


def test_a_batch_counted_twice_is_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects a second batch with the same photos to be named by its positions and by the balance."""
    row = redis_client.hgetall(PREFIX + "b:" + bid)
    redis_client.hset(PREFIX + "b:twin", mapping=row)  # type: ignore[arg-type]
    redis_client.zadd(f"{PREFIX}ready:{FIRST}:bulk", {"twin": 8})
    problems = complaints(redis_client)
    assert "source s: positions [8, 9, 10, 11] are in more than one place" in problems
    assert "+ 12 items in batches" in problems


def test_a_batch_that_lives_on_after_its_commit_is_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects photos that were released already to be named, although each is in one batch only."""
    redis_client.hset(PREFIX + "b:" + bid, "items", encode(photos("s", 0, 4)))
    assert "source s: 4 positions before its cursor 4 are in batches, not 0" in complaints(redis_client)


def test_a_batch_in_two_places_is_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects invariant A to be named, with the places."""
    redis_client.zadd(PREFIX + "later", {bid: 1})
    assert f"batch {bid} is in 2 places" in complaints(redis_client)


def test_a_batch_in_the_wrong_list_is_noticed(redis_client: redis.Redis, ledger: Ledger) -> None:
    """Expects a batch that waits where nobody of its tier looks, or out of its turn, to be named."""
    (child,) = admit(ledger, "s", 4)
    redis_client.hset(PREFIX + "b:" + child.bid, "lane", "live")
    redis_client.zadd(f"{PREFIX}ready:{FIRST}:bulk", {child.bid: 7})
    problems = complaints(redis_client)
    assert f"batch {child.bid} of {FIRST}:live waits in ready:{FIRST}:bulk" in problems
    assert f"batch {child.bid} of order 0 waits in ready:{FIRST}:bulk at 7" in problems


def test_entries_of_nobody_are_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects batches held by an owner that is not among the owners to be named."""
    redis_client.delete(PREFIX + "owners")
    assert bid
    assert "is not among the owners" in complaints(redis_client)


def test_an_unreadable_batch_is_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects a blob that is none to be a problem, not a crash."""
    redis_client.hset(PREFIX + "b:" + bid, "items", b"\x01nonsense")
    assert f"batch {bid} cannot be read" in complaints(redis_client)


def test_a_batch_that_is_not_what_it_says_is_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects its counts, and a deadline that nobody watches, to be named."""
    redis_client.hset(PREFIX + "b:" + bid, mapping={"n": 3, "bytes": 7})
    redis_client.zrem(PREFIX + "due", bid)
    problems = complaints(redis_client)
    assert f"batch {bid} says n = 3 and holds 4 items" in problems
    assert f"batch {bid} says bytes = 7 and its items have 0" in problems
    assert f"batch {bid} has a deadline and is not in due" in problems


def test_a_broken_window_is_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects a position that entered twice, or out of order, and a window that grew, to be named."""
    redis_client.rpush(PREFIX + "win:all", "3|s:3+1")
    redis_client.rpush(PREFIX + "win:subnet", "3" * 1000 + "|t:0+1000")
    redis_client.hincrby(PREFIX + "rings", "subnet", 1000)
    problems = complaints(redis_client)
    assert bid
    assert "window all: s has position 3 before 3" in problems
    assert "window all holds 5 cells, of 5 positions, not 4" in problems
    assert "window subnet holds 1004 cells, more than it needs" in problems


def test_what_waits_out_of_turn_is_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects a verdict in ro whose turn is over, one of no source, and a cursor beyond the offset, to be named."""
    redis_client.zadd(PREFIX + "ro:s", {"2@1|3": 2})
    redis_client.zadd(PREFIX + "ro:nowhere", {"0@1|3": 0})
    redis_client.hset(PREFIX + "src:s", "next", 13)
    problems = complaints(redis_client)
    assert bid
    assert "'2@1|3' waits in ro at 2, the cursor is at 13" in problems
    assert "its cursor 13 is beyond its offset 12" in problems
    assert "ro:nowhere has no source" in problems


def test_bytes_that_outlive_or_leave_their_photo_are_noticed(redis_client: redis.Redis, bid: str) -> None:
    """Expects a TTL on a photo that is on its way, and bytes of one that is not, to be named."""
    redis_client.set(PREFIX + "img:s:8", b"x", ex=100)
    redis_client.set(PREFIX + "img:s:0", b"x")
    problems = complaints(redis_client)
    assert bid
    assert "the bytes of s:8 will go" in problems
    assert "the bytes of s:0 stay for ever" in problems


def test_a_lost_verdict_batch_is_noticed(redis_client: redis.Redis, ledger: Ledger) -> None:
    """Expects verdicts that vanish on their way to the collector to be nowhere."""
    owner = joined(ledger)
    admit(ledger, "s", 4)
    to_collector(ledger, owner, take(ledger, owner))
    (batch,) = take(ledger, owner, COLLECTOR)
    redis_client.delete(PREFIX + "b:" + batch.bid)
    redis_client.hdel(PREFIX + "own:" + owner, batch.bid)
    with pytest.raises(AssertionError, match="4 positions are nowhere"):
        audit(redis_client).raise_for_problems()
