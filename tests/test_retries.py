"""What goes back to its tier without a fault, what settles early, and what a tier over its mark does."""

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis

import tests.test_stops
from configs.errors import ConfigError
from configs.profile import Delivery, parse_profile
from routing.broker import stops
from routing.messages import decode_items
from tests.fault_engines import FaultEngine, solo
from tests.test_stops import PROFILE, Fleet, photos, sure
from workers.engines import DeviceMemoryError, EngineAwayError
from workers.overload import Mark
from workers.progress import Progress
from workers.tier import TierStop


def with_profile(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Tiers are made with another profile from now on."""
    monkeypatch.setattr(tests.test_stops, "PROFILE", msgspec.structs.replace(PROFILE, **fields))


def test_an_engine_that_is_away_is_waited_for(fleet: Fleet) -> None:
    """Far more tries than max_faults, and no photo is a void, none runs apart; tries are forgotten at the next tier."""
    away_until = 12
    seen: list[int] = []

    def scores(position: int) -> float:
        if len(fleet.engines[0].batches) <= away_until:
            raise EngineAwayError("away on purpose")
        return 0.0 if position == 3 else sure(position)

    def second(position: int) -> float:
        for key in fleet.client.keys("{nf}:b:*"):
            if fleet.client.hget(key, "tier") == b"second":
                seen.extend(item.tries for item in decode_items(fleet.client.hget(key, "items")))
        return sure(position)

    fleet.admit(photos(8))
    fleet.drain(scores, second)
    rows = fleet.rows("s-1")
    assert len(rows) == 8
    assert not [row for row in rows.values() if row["p"] is None]
    assert seen == [0]
    # Together, not one by one: nobody is suspected.
    assert {len(batch) for batch in fleet.engines[0].batches} == {8}


def test_the_back_off_grows_to_its_bound(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is twice the last one, less jitter of up to a half, and never above backoff_max_s; 2,000 tries too."""
    with_profile(monkeypatch, delivery=Delivery(backoff_s=0.5, backoff_max_s=60.0))
    stop = fleet.tier("first", sure)
    for tries in range(8):
        longest_ms = min(60_000, 500 * 2**tries)
        waits_ms = [stop._backoff_ms(tries) for _ in range(50)]
        assert longest_ms / 2 - 1 <= min(waits_ms) < max(waits_ms) <= longest_ms
    assert stop._backoff_ms(2000) <= 60_000


def test_items_wait_in_the_ledger_with_their_tries(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes back is in `later` under its due time; items of other tries wait apart from it, and no thread waits."""
    with_profile(monkeypatch, delivery=Delivery(backoff_s=30.0))

    def away(_: int) -> float:
        raise EngineAwayError("away on purpose")

    tried = [msgspec.structs.replace(item, tries=4) for item in photos(4, source="s-2")]
    fleet.admit(photos(4))
    fleet.admit(tried)
    begun_s = time.monotonic()
    fleet.tier("first", away).serve()
    assert time.monotonic() - begun_s < 10
    later = fleet.client.zrange("{nf}:later", 0, -1, withscores=True)
    now_ms = time.time() * 1000
    waits = {decode_items(fleet.client.hget(b"{nf}:b:" + bid, "items"))[0].tries: due - now_ms for bid, due in later}
    assert sorted(waits) == [1, 5]
    assert 5_000 < waits[1] <= 30_000
    assert 25_000 < waits[5] <= 60_000


def test_a_deadline_holds_while_an_engine_is_away(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overdue photo is settled from `later`; one without a deadline that was claimed beside it goes on waiting."""
    with_profile(monkeypatch, delivery=Delivery(backoff_s=600.0, backoff_max_s=600.0))

    def away(_: int) -> float:
        raise EngineAwayError("away on purpose")

    fleet.admit(photos(2))
    fleet.admit(photos(2, source="s-2", deadline_ms=int(time.time() * 1000) + 1500))
    first = fleet.tier("first", away)
    first.serve()
    assert fleet.ledger.snapshot([]).use["later:first"] == 4
    while not fleet.ledger.tick(stops(PROFILE)).ready["collector"]:
        fleet.owner._route()
        time.sleep(0.02)
    fleet.collector.serve()
    assert {row["reason"] for row in fleet.rows("s-2").values()} == {"deadline"}
    assert fleet.rows("s-1") == {}
    assert fleet.ledger.snapshot([]).use["later:first"] == 2


def until(done: Callable[[], bool], within_s: float = 20.0) -> None:
    begun_s = time.monotonic()
    while not done():
        assert time.monotonic() - begun_s < within_s, "not within its time"
        time.sleep(0.02)


def test_a_deadline_that_comes_in_the_queue_settles(fleet: Fleet) -> None:
    """A photo overdue by the time the device is free is settled as such, and the engine never sees it."""
    busy, free = threading.Event(), threading.Event()

    def scores(position: int) -> float:
        if position == 0:
            busy.set()
            free.wait(20)
        return sure(position)

    first = fleet.tier("first", scores)
    fleet.admit(photos(1))
    holder = threading.Thread(target=first.serve)
    holder.start()
    assert busy.wait(20)
    # Enough time to be claimed, too little to be scored.
    now_ms = int(time.time() * 1000)
    fleet.admit(photos(1, source="s-2"))
    fleet.admit(photos(3, source="s-3", deadline_ms=now_ms + 1500))
    waiter = threading.Thread(target=first.serve)
    waiter.start()
    until(lambda: any(first.scorer._waiting["bulk"]))
    time.sleep(max(0.0, (now_ms + 1600) / 1000 - time.time()))
    free.set()
    holder.join(20)
    waiter.join(20)
    fleet.drain(sure, sure)
    assert {row["reason"] for row in fleet.rows("s-3").values()} == {"deadline"}
    assert sum(len(batch) for engine in fleet.engines for batch in engine.batches) == 2
    assert [row["p"] is None for row in fleet.rows("s-2").values()] == [False]


def test_a_photo_too_large_for_the_device_waits_for_memory(fleet: Fleet) -> None:
    """Alone it does not fit, so it comes again, without a fault; its neighbours get verdicts at once."""
    small = [True]

    def scores(position: int) -> float:
        if position == 5 and small[0]:
            raise DeviceMemoryError("no memory on purpose")
        return sure(position)

    fleet.admit(photos(8))
    first = fleet.tier("first", scores)
    while len(fleet.rows("s-1")) < 7:
        first.serve()
        fleet.collector.serve()
    assert sorted(fleet.rows("s-1")) == [0, 1, 2, 3, 4, 6, 7]
    small[0] = False
    fleet.drain(scores, sure)
    assert not [row for row in fleet.rows("s-1").values() if row["p"] is None]


def test_a_thread_that_hangs_is_seen_beside_others_that_work(fleet: Fleet) -> None:
    """One claim hangs in its photo store while others get verdicts: the process counts as stalled all the while."""
    release = threading.Event()
    tier, progress = PROFILE.tier("first"), Progress()
    seen_s: list[float] = []

    def load(items: Any) -> list[tuple[int]]:
        if items[0].source == "s-hangs":
            release.wait(30)
        progress.moved()
        seen_s.append(progress.stalled_s())
        return [(item.position,) for item in items]

    stop = TierStop(PROFILE, tier, solo(FaultEngine(sure)), load, fleet.owner, progress)
    stop.scorer.start()
    fleet.started.append(stop)
    fleet.admit(photos(1, source="s-hangs"))
    hung = threading.Thread(target=stop.serve)
    hung.start()
    until(lambda: fleet.ledger.snapshot([]).use.get("held:first", 0) == 1)
    begun_s = time.monotonic()
    for i in range(10):
        fleet.admit(photos(2, source=f"s-{i}"))
        stop.serve()
        time.sleep(0.1)
    # As seen by a thread that has just moved.
    assert seen_s[-1] > time.monotonic() - begun_s - 0.5 > 0.4
    release.set()
    hung.join(20)
    assert progress.stalled_s() == 0


def test_who_waits_for_a_server_that_is_away_does_not_stall(fleet: Fleet) -> None:
    """Its thread moves with every try."""
    stop = fleet.tier("first", sure)
    tries: list[float] = []

    def verb() -> float:
        tries.append(stop.progress.stalled_s())
        if len(tries) < 6:
            raise redis.ConnectionError("away on purpose")
        return stop.progress.stalled_s()

    with stop.progress.in_hand():
        begun_s = time.monotonic()
        stop.patiently(verb)
        # The last pause is about half of the whole wait.
        assert tries[-1] < 0.8 * (time.monotonic() - begun_s)


def test_a_tier_over_its_mark_is_asked_for_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more waiting at the next tier than its mark unsure photos settle by the vote held, and say why."""
    tiers = (PROFILE.tiers[0], msgspec.structs.replace(PROFILE.tiers[1], max_waiting=10))
    with_profile(monkeypatch, tiers=tiers)
    monkeypatch.setattr("workers.overload.LOOK_S", 0.0)
    first = fleet.tier("first", lambda i: None if i == 7 else 0.1)
    fleet.admit(photos(32))
    while first.serve():
        pass
    # Claims are of 16: the first one finds nobody waiting and climbs, the second finds 16.
    assert fleet.ledger.snapshot([]).use["ready:second"] == 16
    fleet.admit(photos(8, source="s-2"))
    while first.serve():
        pass
    # One without a vote still climbs: nothing could be said of it.
    assert fleet.ledger.snapshot([]).use["ready:second"] == 17
    fleet.drain(lambda _: 0.1, sure)
    rows = [*fleet.rows("s-1").values(), *fleet.rows("s-2").values()]
    assert [row["reason"] for row in rows].count("overload") == 16 + 7
    assert {row["tier"] for row in rows if row["reason"] == "overload"} == {"first"}
    assert not [row for row in rows if row["p"] is None]


def test_the_mark_is_looked_up_once_a_second(fleet: Fleet) -> None:
    """Within a second the answer stands, then it follows the ledger; a tier without a mark is never over it."""
    now_s = [100.0]
    marked = msgspec.structs.replace(PROFILE.tiers[0], max_waiting=2)
    mark = Mark(fleet.ledger, marked, lambda: now_s[0])
    unmarked = Mark(fleet.ledger, PROFILE.tiers[0], lambda: now_s[0])
    assert not mark.over()
    fleet.admit(photos(3))
    assert not mark.over()
    now_s[0] += 1.0
    assert mark.over()
    assert not unmarked.over()
    fleet.drain(sure, sure)


def test_a_profile_that_cannot_be_meant_is_refused() -> None:
    """A back-off above ten minutes, or a mark at the first tier, to which nothing climbs."""
    text = 'name = "p"\n[[tiers]]\nname = "a"\nmodel = "scout-s"\n'
    with pytest.raises(ConfigError, match="backoff_max_s"):
        parse_profile(f"{text}[delivery]\nbackoff_max_s = 601.0\n".encode(), "p.toml")
    with pytest.raises(ConfigError, match="max_waiting"):
        parse_profile(f"{text}max_waiting = 5\n".encode(), "p.toml")
