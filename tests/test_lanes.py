"""Live work beside bulk, and deadlines, on a real fleet."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from configs.profile import Batch, Delivery, Profile, Tier
from ops.server import EmbeddedServer
from tests.small_fleet import FIRST, SECOND, Faults, SmallFleet, small_profile
from workers.verdicts import VerdictDatabase

#: Of one device batch.
BATCH_S = 0.4
#: What looking, claiming and settling may add on a busy machine.
SLACK_S = 0.4


def one_tier(**fields: Any) -> Profile:
    """One tier that judges all, in device batches of 16."""
    tier = Tier(name=FIRST, model="scout-s", max_batch=16, threads=3, stall_s=20.0)
    return small_profile(tiers=(tier,), batch=Batch(max_items=16, linger_ms=10), **fields)


def rows(fleet: SmallFleet, source: str) -> list[dict[str, Any]]:
    """The verdicts of a source so far."""
    with VerdictDatabase(fleet.database_url, create=False) as database:
        return [row for i in database.ids(source) if (row := database.row(source, i))]


def waits_s(fleet: SmallFleet, sources: list[str]) -> list[float]:
    """From admission to verdict, of one photo of each source."""
    return [(row["settled_ms"] - row["taken_ms"]) / 1000 for source in sources for row in rows(fleet, source)]


@pytest.mark.usefixtures("redis_client")
def test_a_live_photo_waits_for_the_device_batch_in_hand(tmp_path: Path, server: EmbeddedServer) -> None:
    """With all threads full of bulk it waits for that batch and its own; also when several come during one batch."""
    with SmallFleet(tmp_path, server, one_tier(), {FIRST: Faults(slow_s=BATCH_S)}) as fleet:
        fleet.feed("bulk", 600)
        fleet.until(lambda: fleet.ledger.snapshot([]).use.get("held:first", 0) == 48)
        sources = [f"live-{i}" for i in range(15)]
        for i, source in enumerate(sources):
            fleet.feed(source, 1, "live")
            time.sleep((0.13, 0.31, 0.77)[i % 3] * BATCH_S)
        fleet.until(lambda: len(waits_s(fleet, sources)) == len(sources))
        waits = waits_s(fleet, sources)
        assert fleet.ledger.snapshot([]).use["ready:first"] > 48, "bulk ran dry"
    assert max(waits) < 2 * BATCH_S + SLACK_S, waits


@pytest.mark.slow
@pytest.mark.usefixtures("redis_client")
def test_bulk_keeps_its_share_while_live_work_is_never_dry(tmp_path: Path, server: EmbeddedServer) -> None:
    """With both lanes deep, bulk's part of what is scored is bulk_share."""
    share = 0.25
    profile = one_tier(delivery=Delivery(beat_s=0.25, lease_s=1.5, bulk_share=share))
    with SmallFleet(tmp_path, server, profile, {FIRST: Faults(slow_s=0.05)}) as fleet:
        fleet.feed("bulk", 2000)
        fleet.feed("live", 3000, "live")
        fleet.until(lambda: scored(fleet, "live") > 200)
        live, bulk = scored(fleet, "live"), scored(fleet, "bulk")
        fleet.until(lambda: scored(fleet, "live") > 1600)
        live, bulk = scored(fleet, "live") - live, scored(fleet, "bulk") - bulk
        assert fleet.client.zcard("{nf}:ready:first:live") > 0, "live work ran dry"
    assert share - 0.08 < bulk / (live + bulk) < share + 0.08


def scored(fleet: SmallFleet, source: str) -> int:
    """Its verdicts in the database."""
    with VerdictDatabase(fleet.database_url, create=False) as database:
        return sum(1 for _ in database.ids(source))


@pytest.mark.usefixtures("redis_client")
def test_deadlines_hold_without_a_worker(tmp_path: Path, server: EmbeddedServer) -> None:
    """The second tier stands still: what climbed settles by the first tier's vote, within 2 s after its deadline."""
    with SmallFleet(tmp_path, server) as fleet:
        fleet.kill(SECOND, signal.SIGSTOP)
        try:
            fleet.feed("s-1", 100, deadline_ms=3000)
            fleet.until(fleet.done)
            account = fleet.account()
            ended = rows(fleet, "s-1")
        finally:
            fleet.kill(SECOND, signal.SIGCONT)
    late = [row for row in ended if row["reason"] == "deadline"]
    assert account.balanced, account.problems
    assert (len(ended), len(late)) == (100, 20)
    assert {(row["tier"], len(row["votes"])) for row in late} == {(FIRST, 1)}
    after_s = [(row["settled_ms"] - row["taken_ms"]) / 1000 - 3.0 for row in late]
    assert 0 <= min(after_s) <= max(after_s) < 2.0
