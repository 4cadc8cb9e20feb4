"""Tiers and the collector at work on a real ledger, without Celery around them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace
from sklearn.metrics import matthews_corrcoef

from configs.profile import Delivery, Profile, Tier
from ops.account import ring_counts
from ops.server import EmbeddedServer
from routing.address import parse_address
from routing.batches import item_batch
from routing.broker import Doorbells, make_app, stops
from routing.ledger import Ledger, new_id
from routing.messages import Child, Item, decode_items
from routing.owner import Owner
from routing.patience import StoreAwayError, passing
from routing.store import FilePhotos, ServerPhotos
from tests.fault_engines import FaultEngine, load_positions
from workers.collector import CollectorStop
from workers.panel import Member, Panel
from workers.progress import Progress
from workers.scorer import EndingError
from workers.tier import TierStop
from workers.verdicts import VerdictDatabase

PROFILE = Profile(
    name="test",
    tiers=(
        Tier(name="first", model="scout-s", accept_above=0.9, accept_below=0.1, max_batch=16),
        Tier(name="second", model="scout-m", max_batch=16),
    ),
    delivery=Delivery(backoff_s=0.01, backoff_max_s=0.02),
)

Scores = Callable[[int], float | None]


class Fleet:
    """Two tiers and a collector, driven by hand."""

    def __init__(
        self,
        server: EmbeddedServer,
        client: Any,
        database: VerdictDatabase,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        self.ledger = Ledger(client, clock_us)
        self.client = client
        self.database = database
        doorbells = Doorbells(make_app(parse_address(server.url), PROFILE))
        self.owner = Owner(self.ledger, PROFILE, doorbells, stops(PROFILE))
        self.ledger.enlist(self.owner.id, PROFILE.digest())
        self.store = ServerPhotos(client)
        self.collector = CollectorStop(PROFILE, database, self.store, self.owner, Progress())
        self.started: list[TierStop] = []
        self.engines: list[FaultEngine] = []

    def tier(self, name: str, scores: Scores) -> TierStop:
        tier = PROFILE.tier(name)
        self.engines.append(FaultEngine(scores))
        panel = Panel(name, [Member(PROFILE.models()[name][0], self.engines[-1], tier.weight)])
        stop = TierStop(PROFILE, tier, panel, load_positions, self.owner, Progress())
        stop.scorer.start()
        self.started.append(stop)
        return stop

    def admit(self, items: list[Item], lane: str = "bulk", size: int = 8) -> None:
        source = items[0].source
        epoch, offset = self.ledger.open(source, lane)
        children: list[Child] = [item_batch(items[i : i + size], "first", lane) for i in range(0, len(items), size)]
        self.ledger.admit(
            source, epoch, offset, offset + len(items), lane, children, stored=[], max_items=10**6, max_bytes=10**9
        )

    def drain(self, first: Scores, second: Scores) -> None:
        """Serves all stops until nothing is left."""
        tiers = [self.tier("first", first), self.tier("second", second)]
        for _ in range(2000):
            for stop in (*tiers, self.collector):
                stop.serve()
            self.owner._route()
            if not self.ledger.snapshot([]).use.get("items"):
                return
        pytest.fail(f"not drained: {self.ledger.snapshot(['first', 'second'])}")

    def rows(self, source: str) -> dict[int, dict[str, Any]]:
        return {i: row for i in self.database.ids(source) if (row := self.database.row(source, i))}


def photos(n: int, source: str = "s-1", **changes: Any) -> list[Item]:
    fields: dict[str, Any] = {"origin": "o", "label": 1, "sha256": bytes(32), "stored_bytes": 0, "size_px": (1, 1)}
    return [Item(source=source, position=i, **(fields | {"label": i % 2} | changes)) for i in range(n)]


def sure(position: int) -> float:
    return 5.0 if position % 2 else -5.0


def test_sure_photos_settle_first_unsure_ones_climb(fleet: Fleet) -> None:
    """Each photo gets one verdict, from the tier that was sure of it, with the votes that it gathered."""
    fleet.admit(photos(40))
    fleet.drain(lambda i: 0.0 if i % 4 == 0 else sure(i), sure)
    rows = fleet.rows("s-1")
    assert len(rows) == 40
    assert {i for i, row in rows.items() if row["tier"] == "second"} == set(range(0, 40, 4))
    assert len(rows[0]["votes"]) == 2
    tallies = fleet.ledger.snapshot(["first", "second"]).tallies
    assert (tallies["first"]["scored"], tallies["first"]["settled"], tallies["first"]["escalated"]) == (40, 30, 10)
    assert tallies["second"]["settled"] == 10


def test_windows_rows_and_scikit_learn_agree(fleet: Fleet) -> None:
    """The ledger's window, the rows and scikit-learn say the same of photos that some were wrong about."""
    fleet.admit(photos(120))
    fleet.drain(lambda i: -sure(i) if i % 10 == 3 else sure(i), sure)
    rows = fleet.rows("s-1")
    labels = [row["label"] for row in rows.values()]
    decisions = [int(row["p"] > 0.5) for row in rows.values()]
    in_window = ring_counts(fleet.ledger.window("all")[-100:])
    assert in_window.mcc == pytest.approx(matthews_corrcoef(labels[-100:], decisions[-100:]))
    assert fleet.database.recount()["all"].mcc == pytest.approx(matthews_corrcoef(labels, decisions))
    assert fleet.collector.windows.get("all", 100).counts == in_window


def test_bad_photos_do_not_harm_their_neighbours(fleet: Fleet) -> None:
    """A photo that cannot be decoded is quarantined with its reason; the others of its batch get verdicts."""
    items = photos(8)
    items[3] = photos(8, origin="bad")[3]
    fleet.admit(items)
    fleet.drain(sure, sure)
    rows = fleet.rows("s-1")
    assert [i for i, row in rows.items() if row["p"] is None] == [3]
    assert rows[3]["reason"] == "undecodable"
    assert fleet.ledger.snapshot([]).account["quarantined"] == 1


def test_an_engine_error_finds_its_culprit(fleet: Fleet) -> None:
    """A photo that the engine fails on is split off, tried again, and quarantined alone."""

    def scores(position: int) -> float:
        if position == 5:
            raise RuntimeError("boom")
        return sure(position)

    fleet.admit(photos(16), size=16)
    fleet.drain(scores, sure)
    rows = fleet.rows("s-1")
    assert [i for i, row in rows.items() if row["p"] is None] == [5]
    assert rows[5]["reason"] == "engine-error"
    assert "boom" in rows[5]["detail"]


def test_a_model_that_abstains_everywhere_leaves_a_void(fleet: Fleet) -> None:
    """No vote is no verdict."""
    fleet.admit(photos(2))
    fleet.drain(lambda _: None, lambda i: None if i == 0 else sure(i))
    rows = fleet.rows("s-1")
    assert rows[0]["reason"] == "no-vote"
    assert rows[1]["p"] is not None


def test_overdue_photos_settle_with_the_votes_held(fleet: Fleet) -> None:
    """Past its deadline a photo costs no more device time; without a vote it is a void, and says why."""
    fleet.admit(photos(4, deadline_ms=1))
    fleet.drain(sure, sure)
    rows = fleet.rows("s-1")
    assert {row["reason"] for row in rows.values()} == {"deadline"}
    assert not any(engine.batches for engine in fleet.engines)


def test_seen_photos_are_counted_apart(fleet: Fleet) -> None:
    """What a model was trained on enters no headline window."""
    fleet.admit([*photos(10, seen=True)])
    fleet.drain(sure, sure)
    assert fleet.ledger.window("all") == b""
    assert len(fleet.ledger.window("seen/all")) == 10
    assert fleet.ledger.window("subnet") == b""


def test_unlabelled_photos_enter_no_window(fleet: Fleet) -> None:
    """They get verdicts, and hold up nobody behind them."""
    items = photos(6)
    items[2] = photos(6, label=-1)[2]
    fleet.admit(items)
    fleet.drain(sure, sure)
    assert len(fleet.rows("s-1")) == 6
    assert len(fleet.ledger.window("all")) == 5


def test_a_batch_that_killed_its_worker_runs_apart(fleet: Fleet) -> None:
    """After three deaths on one photo that photo alone is quarantined; its neighbours get verdicts."""
    fleet.admit(photos(4), size=4)
    for _ in range(4):
        dead = Owner(fleet.ledger, PROFILE, fleet.owner.doorbells, stops(PROFILE))
        fleet.ledger.enlist(dead.id, PROFILE.digest())
        claim = dead.claim("first", 16)
        for batch in claim.batches:
            if batch.apart:
                fleet.ledger.mark(dead.id, batch, 2)
        assert fleet.ledger.reap(dead.id, 0) == 1
    fleet.drain(sure, sure)
    rows = fleet.rows("s-1")
    assert [i for i, row in rows.items() if row["p"] is None] == [2]
    assert rows[2]["reason"] == "killed-its-worker"


def test_a_batch_nobody_can_read_waits(fleet: Fleet) -> None:
    """A message of a newer version goes back without a fault, for a process that can read it."""
    epoch, _ = fleet.ledger.open("s-9", "bulk")
    newer = Child(bid="x" * 32, tier="first", lane="bulk", n=1, stored_bytes=0, blob=b"\x63new")
    fleet.ledger.admit("s-9", epoch, 0, 1, "bulk", [newer], stored=[], max_items=10, max_bytes=10)
    stop = fleet.tier("first", sure)
    assert stop.serve() == 1
    assert fleet.ledger.snapshot(["first"]).use["later:first"] == 1
    fleet.client.flushall()
    fleet.ledger.enlist(fleet.owner.id, PROFILE.digest())


def test_a_score_that_is_not_a_number_harms_nobody_else(fleet: Fleet) -> None:
    """NaN for one photo is that photo's engine error; its neighbours get verdicts."""
    fleet.admit(photos(8))
    fleet.drain(lambda i: float("nan") if i == 3 else sure(i), sure)
    rows = fleet.rows("s-1")
    assert [i for i, row in rows.items() if row["p"] is None] == [3]
    assert rows[3]["reason"] == "engine-error"


def test_a_neighbours_deadline_is_not_mine(fleet: Fleet) -> None:
    """Unsure photos without a deadline, claimed beside one with a deadline, wait for their tier when it is routed."""
    now_ms = int(time.time() * 1000)
    fleet.admit(photos(5))
    fleet.admit(photos(1, source="s-2", deadline_ms=now_ms + 300))
    first = fleet.tier("first", lambda _: 0.1)
    first.serve()
    time.sleep(max(0.0, now_ms + 320 - time.time() * 1000) / 1000)
    fleet.ledger.tick(stops(PROFILE))
    fleet.drain(lambda _: 0.1, sure)
    assert [row["reason"] for row in fleet.rows("s-2").values()] == ["deadline"]
    assert {(row["tier"], row["reason"]) for row in fleet.rows("s-1").values()} == {("second", "")}


def test_a_routed_batch_gives_back_what_is_not_overdue(fleet: Fleet) -> None:
    """Of two photos with different deadlines in one batch only the overdue one settles early."""
    now_ms = int(time.time() * 1000)
    early, late = photos(2, deadline_ms=now_ms + 100)
    fleet.admit([early, replace(late, deadline_ms=now_ms + 60_000)])
    time.sleep(0.12)
    fleet.ledger.tick(stops(PROFILE))
    fleet.drain(sure, sure)
    rows = fleet.rows("s-1")
    assert (rows[0]["reason"], rows[0]["p"]) == ("deadline", None)
    assert (rows[1]["reason"], rows[1]["tier"]) == ("", "first")


def test_a_routed_suspect_stays_a_suspect(fleet: Fleet) -> None:
    """What the route stop gives back of a batch that runs apart still does, and keeps the deaths that it caused."""
    soon_ms, later_ms = int(time.time() * 1000) + 50, int(time.time() * 1000) + 60_000
    items = [replace(item, deadline_ms=ms) for item, ms in zip(photos(2), (soon_ms, later_ms), strict=True)]
    fleet.admit(items)
    for _ in range(2):
        dying = new_id()
        fleet.ledger.enlist(dying, PROFILE.digest())
        (batch,) = fleet.ledger.claim("first", dying, new_id(), 10).batches
        if batch.apart:
            fleet.ledger.mark(dying, batch, 1)
        fleet.ledger.reap(dying, 0)
    time.sleep(0.1)
    fleet.ledger.tick(stops(PROFILE))
    fleet.owner._route()
    (back,) = fleet.owner.claim("first", 10).batches
    assert back.apart
    assert [(item.position, item.faults) for item in decode_items(back.blob)] == [(1, 1)]


def test_a_batch_claimed_too_often_is_given_up(fleet: Fleet) -> None:
    """The last fuse: after 40 claims without an end a batch is quarantined under a reason of its own."""
    fleet.admit(photos(2))
    for _ in range(40):
        claim = fleet.owner.claim("first", 16)
        assert len(claim.batches) == 1
        fleet.owner.release(claim)
        fleet.ledger.heartbeat(fleet.owner.id, [])
        fleet.ledger.heartbeat(fleet.owner.id, [])
    fleet.drain(sure, sure)
    assert {row["reason"] for row in fleet.rows("s-1").values()} == {"claimed-too-often"}


def test_a_deleted_batch_stops_no_tick(fleet: Fleet) -> None:
    """A batch with a deadline that somebody deleted by hand is dropped from every list, and the beat goes on."""
    fleet.admit(photos(2, deadline_ms=1), size=1)
    for key in fleet.client.keys("{nf}:b:*"):
        fleet.client.delete(key)
    fleet.ledger.tick(stops(PROFILE))
    assert fleet.ledger.snapshot([]).account["dangling"] == 2
    fleet.client.flushall()
    fleet.ledger.enlist(fleet.owner.id, PROFILE.digest())


def test_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """An error of the photo store's file system is no missing photo: it passes."""
    store = FilePhotos(f"file://{tmp_path}")
    (tmp_path / "s-1" / "000000000000.jpg").mkdir(parents=True)
    with pytest.raises(StoreAwayError):
        store.get(photos(1))
    assert passing(StoreAwayError("away"))
    assert passing(redis.ResponseError("NOREPLICAS Not enough good replicas to write."))
    assert passing(redis.ResponseError("MISCONF Errors writing to the AOF file"))
    assert not passing(redis.ResponseError("ERR wrong number of arguments"))


def test_work_after_the_end_is_refused(fleet: Fleet) -> None:
    """A thread that comes late to a stopped device thread is told so, instead of waiting for ever."""
    stop = fleet.tier("first", sure)
    stop.scorer.stop()
    fleet.started.clear()
    with pytest.raises(EndingError):
        stop.scorer.score([1], "bulk")
