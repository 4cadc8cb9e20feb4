"""The collector's commit: order, windows, counts, bytes; quarantine, replay and drop."""

from collections.abc import Iterator, Sequence

import pytest
import redis

from configs.profile import COLLECTOR
from routing.answers import Committed, Standing
from routing.audit import audit
from routing.batches import item_batch, verdict_batch
from routing.ledger import PREFIX, Ledger
from routing.messages import UNLABELLED, encode
from routing.refusals import Lost
from tests.ledgers import (
    FIRST,
    MANY,
    Clock,
    admit,
    collect,
    commit,
    field,
    joined,
    judged,
    photo,
    photos,
    take,
    to_collector,
)


@pytest.fixture(autouse=True)
def _audited(redis_client: redis.Redis) -> Iterator[None]:
    yield
    audit(redis_client).raise_for_problems()


@pytest.fixture
def owner(ledger: Ledger) -> str:
    """An owner that works and collects."""
    return joined(ledger)


def finish(ledger: Ledger, owner: str, only: Sequence[int], p: float | None = 0.9) -> Committed:
    """Works and commits those ready batches whose first positions are given; the others go back."""
    batches = take(ledger, owner)
    chosen = [batch for batch in batches if batch.order in only]
    to_collector(ledger, owner, chosen, p)
    for _ in range(2):
        ledger.heartbeat(owner, [])
    return collect(ledger, owner)


def test_commit_releases_in_order_of_position(ledger: Ledger, owner: str) -> None:
    """Expects positions that came early to wait for their predecessors, then to enter the windows in order."""
    admit(ledger, "s", 12)
    assert finish(ledger, owner, [4]).released == {}
    assert finish(ledger, owner, [8]).released == {}
    assert ledger.window("all") == b""
    assert finish(ledger, owner, [0], 0.1).released == {"all": b"222233333333", "subnet": b"222233333333"}
    assert ledger.ring("all") == [f"s:{i}" for i in range(12)]
    assert ledger.totals("all") == {"2": 4, "3": 8}
    assert ledger.scopes() == ["all", "subnet"]


def test_commit_asked_again_is_gone(ledger: Ledger, owner: str) -> None:
    """Expects a commit whose reply was lost to count once."""
    admit(ledger, "s", 4)
    to_collector(ledger, owner, take(ledger, owner))
    batches = take(ledger, owner, COLLECTOR)
    commit(ledger, owner, batches)
    with pytest.raises(Lost):
        commit(ledger, owner, batches)
    assert ledger.totals("all") == {"3": 4}


def test_commit_is_fenced(ledger: Ledger, owner: str) -> None:
    """Expects a collector that was reaped not to move anything."""
    admit(ledger, "s", 4)
    to_collector(ledger, owner, take(ledger, owner))
    batches = take(ledger, owner, COLLECTOR)
    ledger.reap(owner, 0)
    with pytest.raises(Lost):
        commit(ledger, owner, batches)
    assert ledger.totals("all") == {}


def test_commit_refuses_what_does_not_hold_its_verdicts(ledger: Ledger, owner: str) -> None:
    """Expects a caller's mistake to be an error, with nothing written."""
    admit(ledger, "s", 4)
    to_collector(ledger, owner, take(ledger, owner))
    batches = take(ledger, owner, COLLECTOR)
    few = [Standing("s", [0], ["3|all"], [], [], [], [])]
    with pytest.raises(ValueError, match="1 items, in place of 4"):
        ledger.commit(owner, batches, few, verdicts=4, quarantined=0, late_after_ms=0, keep_s=1)
    commit(ledger, owner, batches)


def test_a_head_that_waited_too_long_skips_the_gap(
    ledger: Ledger, owner: str, clock: Clock, redis_client: redis.Redis
) -> None:
    """Expects the gap's slots in the subnet's window, and its verdicts, when they come, to be late: only counted."""
    admit(ledger, "s", 12, size=4)
    finish(ledger, owner, [4])
    clock.step_ms(1001)
    committed = finish(ledger, owner, [8])
    assert committed.released == {"all": b"33333333", "subnet": b"----33333333"}
    assert ledger.ring("subnet")[:5] == ["s:0", "s:1", "s:2", "s:3", "s:4"]
    late = finish(ledger, owner, [0], 0.1)
    assert (late.late, late.released) == (4, {})
    assert ledger.totals("all") == {"2": 4, "3": 8}
    assert field(redis_client, "acct", "late") == 4
    assert field(redis_client, "src:s", "skipped") == 0


def test_a_gap_of_thousands_takes_the_last_thousand_slots(ledger: Ledger, owner: str, clock: Clock) -> None:
    """Expects a long gap to push everything older out of the subnet's window, at a bounded cost."""
    admit(ledger, "s", 3000, size=1500)
    admit(ledger, "s", 3002, size=1)
    finish(ledger, owner, [3000])
    clock.step_ms(2000)
    finish(ledger, owner, [3001])
    assert ledger.window("subnet") == b"-" * 998 + b"33"
    assert ledger.window("all") == b"33"


def test_a_void_takes_its_slot_and_its_bytes_stay_a_while(
    ledger: Ledger, owner: str, redis_client: redis.Redis
) -> None:
    """Expects a void in the subnet's window and in quarantine, its bytes with a TTL; a verdict's are unlinked."""
    for position in (0, 1):
        redis_client.set(f"{PREFIX}img:s:{position}", b"x")
    admit(ledger, "s", 2, size=1, stored_bytes=1)
    good, bad = take(ledger, owner)
    to_collector(ledger, owner, [good])
    to_collector(ledger, owner, [bad], None)
    assert collect(ledger, owner).released == {"all": b"3", "subnet": b"3-"}
    assert redis_client.exists(PREFIX + "img:s:0") == 0
    assert 0 < redis_client.ttl(PREFIX + "img:s:1") <= 100
    assert redis_client.zrange(PREFIX + "voids", 0, -1) == [b"s:1"]
    assert (field(redis_client, "acct", "verdicts"), field(redis_client, "acct", "quarantined")) == (1, 1)


def test_unlabelled_verdicts_take_their_position_and_count_nowhere(ledger: Ledger, owner: str) -> None:
    """Expects the windows to pass an unlabelled photo without a cell."""
    admit(ledger, "s", 2, label=UNLABELLED)
    admit(ledger, "s", 4)
    to_collector(ledger, owner, take(ledger, owner))
    assert collect(ledger, owner).released == {"all": b"33", "subnet": b"33"}
    assert ledger.ring("all") == ["s:2", "s:3"]


def test_windows_keep_their_last_thousand(ledger: Ledger, owner: str, redis_client: redis.Redis) -> None:
    """Expects windows cut at 1,000 after large commits and small ones, with all of it in the counts and the reply."""
    admit(ledger, "s", 2500, size=2500)
    to_collector(ledger, owner, take(ledger, owner))
    assert len(collect(ledger, owner).released["all"]) == 2500
    assert ledger.ring("all") == [f"s:{i}" for i in range(1500, 2500)]
    admit(ledger, "s", 2510)
    to_collector(ledger, owner, take(ledger, owner), 0.1)
    collect(ledger, owner)
    assert ledger.window("all") == b"3" * 990 + b"2" * 10
    assert ledger.totals("all") == {"3": 2500, "2": 10}
    for end in (3000, 3500, 4000):
        admit(ledger, "s", end)
        to_collector(ledger, owner, take(ledger, owner))
        collect(ledger, owner)
    assert ledger.ring("all") == [f"s:{i}" for i in range(3000, 4000)]
    # What no window needs any more is gone.
    assert redis_client.llen(PREFIX + "win:all") == 2


def test_thousands_wait_and_are_released_at_once(ledger: Ledger, owner: str) -> None:
    """Expects more waiting positions than one page to follow their predecessor in one commit."""
    admit(ledger, "s", 1, size=1)
    admit(ledger, "s", 2600, size=2599)
    finish(ledger, owner, [1])
    assert len(finish(ledger, owner, [0]).released["all"]) == 2600
    assert ledger.ring("all") == [f"s:{i}" for i in range(1600, 2600)]


def test_waiting_and_fresh_positions_are_merged(ledger: Ledger, owner: str) -> None:
    """Expects order over both: what waited and what this commit brings, interleaved."""
    admit(ledger, "s", 7, size=1)
    finish(ledger, owner, [1, 3, 6])
    assert finish(ledger, owner, [0, 2, 5], 0.1).released["all"] == b"2323"
    assert finish(ledger, owner, [4]).released["all"] == b"323"


def test_sources_keep_their_own_order(ledger: Ledger, owner: str) -> None:
    """Expects one source's gap not to hold another's verdicts."""
    admit(ledger, "a", 2, size=1)
    admit(ledger, "b", 2, size=1)
    finish(ledger, owner, [1, 2, 3])
    assert ledger.ring("all") == ["b:0", "b:1"]
    finish(ledger, owner, [0])
    assert ledger.ring("all") == ["b:0", "b:1", "a:0", "a:1"]


def _quarantined(ledger: Ledger, owner: str, redis_client: redis.Redis) -> None:
    redis_client.set(PREFIX + "img:s:0", b"x")
    admit(ledger, "s", 1, stored_bytes=1)
    to_collector(ledger, owner, take(ledger, owner), None)
    collect(ledger, owner)


def test_a_replay_counts_and_stays_out_of_the_windows(ledger: Ledger, owner: str, redis_client: redis.Redis) -> None:
    """Expects a replay to be late: all-time counts move, no window does, its bytes live until its verdict."""
    _quarantined(ledger, owner, redis_client)
    blob = encode([photo("s", 0, stored_bytes=1, replay=True)])
    assert ledger.replay("s", 0, FIRST, blob, 1, in_server=True, row_gen=0) == "ok"
    assert redis_client.ttl(PREFIX + "img:s:0") == -1
    assert ledger.replay("s", 0, FIRST, blob, 1, in_server=True, row_gen=0) == "gone"
    audit(redis_client).raise_for_problems()
    to_collector(ledger, owner, take(ledger, owner))
    committed = collect(ledger, owner)
    assert (committed.late, committed.released) == (1, {})
    assert ledger.totals("all") == {"3": 1}
    assert ledger.window("subnet") == b"-"
    assert redis_client.exists(PREFIX + "img:s:0") == 0
    assert (field(redis_client, "acct", "verdicts"), field(redis_client, "acct", "quarantined")) == (1, 0)


def test_a_replay_without_its_bytes_stays_in_quarantine(ledger: Ledger, owner: str, redis_client: redis.Redis) -> None:
    """Expects missing, and a void that can be dropped later."""
    _quarantined(ledger, owner, redis_client)
    redis_client.delete(PREFIX + "img:s:0")
    assert ledger.replay("s", 0, FIRST, b"", 1, in_server=True, row_gen=0) == "missing"
    assert ledger.drop(["s:0", "s:1"]) == 1
    assert ledger.drop(["s:0"]) == 0


def test_drop_touches_nothing_that_is_on_its_way(ledger: Ledger, owner: str, redis_client: redis.Redis) -> None:
    """Expects the bytes of a photo that is not in quarantine to stay, and those of a void to go."""
    redis_client.set(PREFIX + "img:s:1", b"x")
    _quarantined(ledger, owner, redis_client)
    admit(ledger, "s", 2, stored_bytes=1)
    assert ledger.drop(["s:0", "s:1"]) == 1
    assert redis_client.exists(PREFIX + "img:s:0") == 0
    assert redis_client.exists(PREFIX + "img:s:1") == 1


def test_bad_at_intake_is_a_void_from_the_start(ledger: Ledger, owner: str) -> None:
    """Expects admit to take voids straight to the collector, in the order of their positions."""
    epoch, _ = ledger.open("s", "bulk")
    items = photos("s", 0, 3)
    children = [
        item_batch([items[0], items[2]], FIRST, "bulk"),
        verdict_batch([judged(items[1], None)], "bulk"),
    ]
    woken = ledger.admit("s", epoch, 0, 3, "bulk", children, stored=[], max_items=MANY, max_bytes=MANY)
    assert woken == [FIRST, COLLECTOR]
    assert collect(ledger, owner).released == {}
    to_collector(ledger, owner, take(ledger, owner))
    assert collect(ledger, owner).released == {"all": b"33", "subnet": b"3-3"}
