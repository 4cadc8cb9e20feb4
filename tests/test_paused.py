"""Processes that stand still and go on: a pause is no death, and who was given up in a pause learns of it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from ops.server import EmbeddedServer
from routing.audit import audit
from routing.broker import queue_name, stops
from routing.owner import MAX_DOORBELLS
from tests.ledgers import field
from tests.small_fleet import FIRST, Faults, SmallFleet, small_profile

LEASE_S = small_profile().delivery.lease_s


@pytest.mark.faults
def test_a_server_that_stands_still_makes_nobody_look_dead(tmp_path: Path) -> None:
    """Expects nobody reaped and no process ended by a server that stood still for two leases under load."""
    with EmbeddedServer(tmp_path / "server", fsync="everysec") as own:
        (tmp_path / "fleet").mkdir()
        with SmallFleet(tmp_path / "fleet", own, faults={FIRST: Faults(slow_s=0.05)}) as fleet:
            fleet.feed("s", 3000)
            pids = [fleet.pid(name) for name in ("first", "second", "collector")]
            assert own.pid
            os.kill(own.pid, signal.SIGSTOP)
            try:
                begun_s = time.monotonic()
                # Nothing that asks the server: this process would stand still too.
                while time.monotonic() - begun_s < 2 * LEASE_S:
                    fleet.supervisor.poll()
                    time.sleep(0.05)
            finally:
                os.kill(own.pid, signal.SIGCONT)
            assert not fleet.done()
            fleet.until(fleet.done)
            assert [fleet.pid(name) for name in ("first", "second", "collector")] == pids
            account = fleet.account()
            assert field(fleet.client, "acct", "reaped") == 0
            audit(fleet.client).raise_for_problems()
    assert account.balanced, account.problems
    assert (account.admitted, account.lost, account.counted_twice) == (3000, 0, 0)


@pytest.mark.faults
def test_a_deep_queue_rings_no_more_than_its_bells(
    tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    """Expects at most 16 doorbells a stop, at any time, before a ready list of half an hour's work."""
    profile = small_profile()
    # 1,250 batches, one at a time, 1.5 s each: 31 minutes.
    profile = replace(profile, tiers=(replace(profile.tiers[0], max_batch=16, stall_s=30.0), profile.tiers[1]))
    with SmallFleet(tmp_path, server, profile, {FIRST: Faults(slow_s=1.5)}) as fleet:
        fleet.feed("s", 20_000)
        most = dict.fromkeys(stops(profile), 0)
        client: Any = redis_client

        def look() -> bool:
            for stop in most:
                most[stop] = max(most[stop], client.llen(queue_name(stop)))
            return False

        begun_s = time.monotonic()
        fleet.until(lambda: look() or time.monotonic() - begun_s > 8.0)
        assert fleet.ledger.snapshot([]).use["ready:first"] > 15_000
    assert 0 < most[FIRST] <= MAX_DOORBELLS
    assert max(most.values()) <= MAX_DOORBELLS, most


@pytest.mark.faults
def test_a_worker_that_stood_still_is_fenced_and_reaps_nobody(
    tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    """Expects its batches at others' hands, its settles refused, nobody else reaped, and a new id for it."""
    profile = small_profile()
    profile = replace(profile, tiers=(replace(profile.tiers[0], workers=2), profile.tiers[1]))
    slow = Faults(slow_s=0.1)
    with SmallFleet(tmp_path, server, profile, {"first-0": slow, "first-1": slow}) as fleet:
        fleet.feed("s", 4000)
        owner = (tmp_path / "first-0.ready").read_text().split()[1]
        fleet.until(lambda: redis_client.hlen("{nf}:own:" + owner) > 0)
        pid = fleet.kill("first-0", signal.SIGSTOP)
        try:
            held = redis_client.hlen("{nf}:own:" + owner)
            begun_s = time.monotonic()
            fleet.until(lambda: time.monotonic() - begun_s > 3 * LEASE_S)
            assert field(redis_client, "acct", "reaped") == 1
            assert held
        finally:
            os.kill(pid, signal.SIGCONT)
        fleet.until(lambda: "goes on under a new id" in fleet.log("first-0"))
        fleet.until(fleet.done)
        assert fleet.pid("first-0") == pid
        account = fleet.account()
        assert "reaped a silent owner" not in fleet.log("first-0")
    assert field(redis_client, "acct", "reaped") == 1
    assert field(redis_client, "acct", "fenced") > 0
    assert account.balanced, account.problems
    assert (account.admitted, account.lost, account.counted_twice) == (4000, 0, 0)
    audit(redis_client).raise_for_problems()
