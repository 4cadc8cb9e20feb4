"""What the ledger forgets, and when: voids whose bytes went, and sources that nobody is to resume."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from PIL import Image

from configs.errors import BusyError, ServerError
from configs.profile import COLLECTOR, Admission, Profile, Tier
from ops.ask import print_answer
from ops.serve import DATABASE
from ops.server import EmbeddedServer
from routing.audit import audit
from routing.batches import item_batch
from routing.ledger import PREFIX, Ledger
from routing.messages import encode
from tests.ledgers import FIRST, MANY, Clock, admit, collect, commit, joined, photo, take, to_collector
from workers.verdicts import VerdictDatabase


@pytest.fixture(autouse=True)
def _audited(redis_client: redis.Redis) -> Iterator[None]:
    yield
    audit(redis_client).raise_for_problems()


def brief(ledger: Ledger, n: int, keep_s: int = 100) -> None:
    """Admits photos of a source that is not to be resumed, one a batch."""
    epoch, _ = ledger.open("s", "live", keep_s)
    children = [item_batch([photo("s", i)], FIRST, "live") for i in range(n)]
    ledger.admit("s", epoch, 0, n, "live", children, stored=[], max_items=MANY, max_bytes=MANY)


def test_a_void_leaves_quarantine_with_its_bytes(ledger: Ledger, clock: Clock, redis_client: redis.Redis) -> None:
    """Expects a commit after keep_s to take out what it put there before, and not what came since."""
    owner = joined(ledger)
    for position in (0, 1):
        admit(ledger, "s", position + 1)
        to_collector(ledger, owner, take(ledger, owner), None)
        collect(ledger, owner)
        clock.step_ms(99_999)
    assert redis_client.zrange(PREFIX + "voids", 0, -1) == [b"s:0", b"s:1"]
    clock.step_ms(-99_998)
    admit(ledger, "s", 3)
    to_collector(ledger, owner, take(ledger, owner))
    collect(ledger, owner)
    assert redis_client.zrange(PREFIX + "voids", 0, -1) == [b"s:1"]
    assert ledger.replay("s", 0, FIRST, b"", 0, in_server=False, row_gen=0) == "gone"
    assert ledger.drop(["s:0"]) == 0


def test_a_commit_takes_out_a_bounded_number_and_more_than_it_brings(
    ledger: Ledger, clock: Clock, redis_client: redis.Redis
) -> None:
    """Expects 1,000 old voids to go, and as many more as come."""
    owner = joined(ledger)
    admit(ledger, "s", 3000, size=3000)
    to_collector(ledger, owner, take(ledger, owner), None)
    collect(ledger, owner)
    clock.step_ms(100_000)
    for brought, left in ((0, 2000), (500, 1000)):
        admit(ledger, f"t{brought}", max(1, brought), size=MANY)
        to_collector(ledger, owner, take(ledger, owner), None if brought else 0.9)
        collect(ledger, owner)
        assert redis_client.zcard(PREFIX + "voids") == left


def test_a_source_of_short_memory_is_forgotten_when_all_of_it_ended(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects a time to live before its first photo and after its last one, and none while one is on its way."""
    ledger.open("s", "live", 100)
    assert 0 < redis_client.ttl(PREFIX + "src:s") <= 100
    brief(ledger, 2)
    assert redis_client.ttl(PREFIX + "src:s") == -1
    owner = joined(ledger)
    for batch, left in zip(take(ledger, owner), (False, True), strict=True):
        to_collector(ledger, owner, [batch])
        collect(ledger, owner)
        assert (redis_client.ttl(PREFIX + "src:s") > 0) == left
    redis_client.delete(PREFIX + "src:s")


def test_a_source_of_short_memory_waits_for_its_late_ones(
    ledger: Ledger, clock: Clock, redis_client: redis.Redis
) -> None:
    """Expects a source whose windows went over a position to be kept until that one has ended too."""
    brief(ledger, 2)
    owner = joined(ledger)
    late, early = take(ledger, owner)
    to_collector(ledger, owner, [early])
    collect(ledger, owner, late_after_ms=5)
    clock.step_ms(10)
    # A commit of nothing of it does not look at it, so a third one goes first.
    epoch, offset = ledger.open("s", "live")
    ledger.admit(
        "s", epoch, offset, 3, "live", [item_batch([photo("s", 2)], FIRST, "live")], stored=[], max_items=9, max_bytes=9
    )
    to_collector(ledger, owner, take(ledger, owner))
    collect(ledger, owner, late_after_ms=5)
    assert ledger.ring("all") == ["s:1", "s:2"]
    assert redis_client.ttl(PREFIX + "src:s") == -1
    to_collector(ledger, owner, [late])
    collect(ledger, owner)
    assert redis_client.ttl(PREFIX + "src:s") > 0


def test_a_replay_does_not_bring_back_a_forgotten_source(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects the void of a source that is forgotten to be judged once more, and the source to stay forgotten."""
    brief(ledger, 1)
    owner = joined(ledger)
    to_collector(ledger, owner, take(ledger, owner), None)
    collect(ledger, owner)
    redis_client.delete(PREFIX + "src:s")
    blob = encode([photo("s", 0, replay=True)])
    assert ledger.replay("s", 0, FIRST, blob, 0, in_server=False, row_gen=0) == "ok"
    audit(redis_client).raise_for_problems()
    to_collector(ledger, owner, take(ledger, owner))
    commit(ledger, owner, take(ledger, owner, COLLECTOR))
    assert not redis_client.exists(PREFIX + "src:s")
    assert ledger.snapshot([]).account["verdicts"] == 1


def test_a_resumable_source_is_remembered(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects no time to live where none was asked for, nor where it was asked for after the first photo."""
    admit(ledger, "s", 4)
    ledger.open("s", "bulk", 100)
    owner = joined(ledger)
    to_collector(ledger, owner, take(ledger, owner))
    collect(ledger, owner)
    assert redis_client.ttl(PREFIX + "src:s") == -1


def test_one_photo_asked_about_leaves_nothing_behind(
    server: EmbeddedServer,
    ledger: Ledger,
    redis_client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Expects the source of a photo that was asked about to be forgotten in an hour, answered or refused."""
    with VerdictDatabase(f"sqlite:///{tmp_path / 'v.db'}"):
        pass
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv(DATABASE, f"sqlite:///{tmp_path / 'v.db'}")
    shot = tmp_path / "shot.jpg"
    Image.new("RGB", (256, 256), "gray").save(shot)
    profile = Profile(name="test", tiers=(Tier(name=FIRST, model="scout-s"),), admission=Admission(max_items=1))
    with pytest.raises(ServerError, match="no answer within"):
        print_answer(shot, profile, 0.01, as_json=False)
    (waiting,) = redis_client.keys(PREFIX + "src:ask-*")
    assert redis_client.ttl(waiting) == -1
    with pytest.raises(BusyError):
        print_answer(shot, profile, 0.01, as_json=False)
    owner = joined(ledger)
    to_collector(ledger, owner, take(ledger, owner))
    collect(ledger, owner)
    sources = redis_client.keys(PREFIX + "src:ask-*")
    assert len(sources) == 2
    assert all(3500 < redis_client.ttl(source) <= 3600 for source in sources)


def test_the_quarantine_of_an_earlier_build_stops_no_commit(ledger: Ledger, redis_client: redis.Redis) -> None:
    """Expects a ledger that kept its voids as a set, under the name of then, to be worked on as any other."""
    redis_client.sadd(PREFIX + "quarantine", "s:7")
    owner = joined(ledger)
    admit(ledger, "s", 1)
    to_collector(ledger, owner, take(ledger, owner), None)
    collect(ledger, owner)
    assert redis_client.hget(PREFIX + "acct", "quarantined") == b"1"
