"""Photos that kill, crash or hang their worker, on a real fleet: they alone are quarantined, and nothing is lost."""

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from configs.errors import SourceError
from configs.profile import Delivery, Profile, Tier
from ops.quarantine import drop, replay
from ops.serve import DATABASE
from ops.server import EmbeddedServer
from routing.audit import audit
from routing.store import ServerPhotos
from tests.fault_engines import FaultEngine, load_positions, solo
from tests.small_fleet import FIRST, Faults, SmallFleet, references, small_profile
from tests.test_stops import PROFILE, Fleet, photos, sure
from workers.progress import Progress
from workers.tier import TierStop
from workers.verdicts import VerdictDatabase

#: Of 64 references: one kills by SIGKILL as the out-of-memory killer does, one by a real segmentation fault, and two
#: are in one batch.
KILLS, SEGFAULTS = (5, 35, 38), (21,)


def one_tier(**fields: Any) -> Profile:
    """One tier, which judges all."""
    tier = Tier(name=FIRST, model="scout-s", max_batch=64, threads=3, stall_s=3.0)
    return small_profile(tiers=(tier,), **fields)


def deaths(fleet: SmallFleet) -> int:
    """How often the tier's worker was started again."""
    return next(state.restarts for state in fleet.supervisor.states if state.name == FIRST)


def voids(fleet: SmallFleet) -> dict[int, str]:
    """Quarantined positions and why."""
    with VerdictDatabase(fleet.database_url, create=False) as database:
        return {row["position"]: row["reason"] for row in database.quarantined(limit=1000)}


def test_poison_among_claimed_neighbours_is_quarantined_alone(
    tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four poison items in four co-claimed batches: one death together, then max_faults deaths for each of them.

    Sent on its way once more it kills again and ends in quarantine again; without its bytes it cannot be sent; dropped
    it is gone.
    """
    profile = one_tier(delivery=Delivery(beat_s=0.2, lease_s=1.0, max_faults=1))
    monkeypatch.setenv("REDIS_URL", server.url)
    with SmallFleet(tmp_path, server, profile, {FIRST: Faults(kills=KILLS, segfaults=SEGFAULTS)}) as fleet:
        monkeypatch.setenv(DATABASE, fleet.database_url)
        fleet.feed("s-1", 64)
        fleet.until(fleet.done, within_s=120)
        audit(redis_client).raise_for_problems()
        account = fleet.account()
        assert voids(fleet) == dict.fromkeys(sorted((*KILLS, *SEGFAULTS)), "killed-its-worker")
        assert deaths(fleet) == 1 + 4
        assert account.balanced, account.problems
        assert (account.admitted, account.verdicts, account.quarantined) == (64, 60, 4)

        with pytest.raises(SourceError, match="bytes are not kept"):
            replay(profile, ["s-1:5"])
        ServerPhotos(fleet.client).put("s-1", [(5, b"bytes")])
        replay(profile, ["s-1:5"])
        assert not fleet.done()
        fleet.until(fleet.done, within_s=120)
        # Once with its batch, in which it is alone; once alone.
        assert deaths(fleet) == 1 + 4 + 2
        assert voids(fleet)[5] == "killed-its-worker"
        drop(profile, ["s-1:5"])
        assert ServerPhotos(fleet.client).get(references("s-1", 5, 6)) == [None]
        with pytest.raises(SourceError, match="1 of 1 were not in quarantine"):
            drop(profile, ["s-1:5"])
        audit(redis_client).raise_for_problems()


@pytest.mark.slow
@pytest.mark.usefixtures("redis_client")
def test_poison_dies_as_often_as_max_faults_says(tmp_path: Path, server: EmbeddedServer) -> None:
    """One poison item under max_faults = 2: it dies once among others, twice alone, and is not tried again."""
    profile = one_tier(delivery=Delivery(beat_s=0.2, lease_s=1.0, max_faults=2))
    with SmallFleet(tmp_path, server, profile, {FIRST: Faults(kills=(9,))}) as fleet:
        fleet.feed("s-1", 32)
        fleet.until(fleet.done, within_s=120)
        assert voids(fleet) == {9: "killed-its-worker"}
        assert deaths(fleet) == 1 + 2
        assert fleet.account().balanced


@pytest.mark.faults
def test_a_device_that_hangs_gives_its_batches_back(
    tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    """While the heart beats the process ends itself, and what it held is at work again in stall, lease and restart."""
    asleep = tmp_path / "asleep"
    profile = one_tier(delivery=Delivery(beat_s=0.2, lease_s=1.0))
    with SmallFleet(tmp_path, server, profile, {FIRST: Faults(hangs_while=str(asleep))}) as fleet:
        asleep.touch()
        fleet.feed("s-1", 100)
        fleet.until(lambda: "no progress, ending this process" in fleet.log(FIRST))
        asleep.unlink()
        # A lease, and a start of the process on a busy machine.
        fleet.until(lambda: fleet.ledger.snapshot([FIRST]).tallies[FIRST].get("scored", 0) > 0, within_s=30)
        fleet.until(fleet.done)
        account = fleet.account()
    assert account.balanced, account.problems
    assert (account.verdicts, account.lost, account.counted_twice) == (100, 0, 0)
    audit(redis_client).raise_for_problems()


def test_only_the_suspect_that_runs_is_marked(fleet: Fleet) -> None:
    """Three suspect batches in three threads: at no time are two marked, nor is one that does not run."""
    fleet.admit(photos(12), size=4)
    fleet.ledger.enlist("dead", PROFILE.digest())
    fleet.ledger.claim("first", "dead", "t", 12)
    assert fleet.ledger.reap("dead", 0) == 3
    running: list[int] = []
    wrong: list[str] = []

    def look(position: int) -> None:
        marks = {fleet.client.hget(key, "order"): fleet.client.hget(key, "at") for key in fleet.client.keys("{nf}:b:*")}
        found = [int(order) + int(at) for order, at in marks.items() if at is not None]
        if found != [position]:
            wrong.append(f"{position} runs, marked: {found}")

    def scores(position: int) -> float:
        running.append(position)
        look(position)
        return sure(position)

    stop = fleet.tier("first", scores)
    threads = [threading.Thread(target=stop.serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(running) == list(range(12))
    assert wrong == []
    fleet.drain(sure, sure)


def test_no_photo_is_loaded_beside_a_suspect(fleet: Fleet) -> None:
    """While a suspect runs, other threads neither load nor score: a crash then can only be its own."""
    fleet.admit(photos(4), size=4)
    fleet.ledger.enlist("dead", PROFILE.digest())
    fleet.ledger.claim("first", "dead", "t", 4)
    assert fleet.ledger.reap("dead", 0) == 1
    fleet.admit(photos(40, source="s-2"), size=1)
    suspects = threading.Event()
    beside: list[str] = []

    def load(items: Any) -> Any:
        if items[0].source == "s-1":
            suspects.set()
            time.sleep(0.05)
            suspects.clear()
        else:
            for _ in range(20):
                time.sleep(0.001)
                if suspects.is_set():
                    beside.append(items[0].id)
        return load_positions(items)

    tier = msgspec.structs.replace(PROFILE.tier("first"), max_batch=1)
    stop = TierStop(PROFILE, tier, solo(FaultEngine(sure)), load, fleet.owner, Progress())
    stop.scorer.start()
    fleet.started.append(stop)
    threads = [threading.Thread(target=stop.serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert beside == []
    fleet.drain(sure, sure)
    assert len(fleet.rows("s-1")) + len(fleet.rows("s-2")) == 44
