"""The fan-out to a served model, with an engine whose questions a test holds and lets go."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image

from configs.errors import PhotoError
from configs.serving import Server
from routing.store import ServerPhotos
from tests.fault_engines import load_positions, solo
from tests.test_stops import PROFILE, Fleet
from tests.test_stops import photos as positions
from workers.background import background
from workers.engines import EngineAwayError, Shot
from workers.fanout import Fanout
from workers.panel import ContractError, Member, Panel
from workers.photos import photo_loader
from workers.progress import Progress
from workers.scorer import LEFT, OVERDUE, EndingError, Outcome
from workers.tier import TierStop


class Slow:
    """The score of x is x. A question takes ``takes_s(x)``, or until the gate opens."""

    def __init__(self, takes_s: Callable[[Any], float] = lambda _: 0.0) -> None:
        self.asked: list[Any] = []
        self.cancelled: list[Any] = []
        self.now = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._takes_s = takes_s

    def load(self) -> None: ...

    def warm_up(self) -> None: ...

    def prepare(self, photo: Image.Image, shot: Shot) -> Any:  # noqa: ARG002 - the contract's
        return photo

    def prepare_stored(self, data: bytes | None, shot: Shot) -> Any:  # noqa: ARG002 - the contract's
        return data

    def score(self, inputs: Sequence[Any]) -> Sequence[float | None]:
        return list(inputs)

    def take_counts(self) -> dict[str, int]:
        return {}

    async def ask(self, one: Any) -> Any:
        self.asked.append(one)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            await asyncio.sleep(self._takes_s(one))
        except asyncio.CancelledError:
            self.cancelled.append(one)
            raise
        finally:
            self.now -= 1
        if one == "away":
            raise EngineAwayError("away on purpose")
        if one == "bad":
            raise RuntimeError("bad input")
        return one

    def hold(self) -> None:
        background().call_soon_threadsafe(self.gate.clear)

    def let_go(self) -> None:
        background().call_soon_threadsafe(self.gate.set)


class Fan(Fanout):
    """Of a panel of one, whose inputs and outcomes stand for themselves."""

    def __init__(self, engine: Slow, in_flight: int, bulk_share: float = 0.2) -> None:
        self.progress = Progress()
        super().__init__(solo(engine), in_flight, self.progress, bulk_share)

    def score(self, inputs: Sequence[Any], lane: str, due_s: Sequence[float] = ()) -> tuple[list[Any], float]:
        outcomes, share_s = super().score([(one,) for one in inputs], lane, due_s)
        return [outcome[0] if isinstance(outcome, tuple) else outcome for outcome in outcomes], share_s


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def until(done: Callable[[], bool]) -> None:
    """Waits, for 5 s at most."""
    until_s = time.monotonic() + 5
    while not done():
        assert time.monotonic() < until_s, "not done in 5 s"
        time.sleep(0.002)


def queued(fan: Fan) -> int:
    """Works that wait for the start of a question."""
    return sum(map(len, fan._waiting.values()))


def test_scores_come_back_in_order_and_no_more_than_so_many_are_in_flight() -> None:
    """The later, the quicker: they end out of order. Eight at once, all the time, and never nine."""
    engine = Slow(lambda one: 0.02 - one / 4000)
    fan = Fan(engine, 8)
    inputs = [float(i) for i in range(60)]
    assert fan.score(inputs, "bulk")[0] == inputs
    assert engine.most == 8
    assert fan.score([], "bulk") == ([], 0.0)


def test_the_slowest_holds_nobody(pool: ThreadPoolExecutor) -> None:
    """One question that takes for ever keeps its own claim, and no other one, from ending."""
    engine = Slow(lambda one: 1.0 if one == 0 else 0.0)
    fan = Fan(engine, 4)
    first = pool.submit(fan.score, [float(i) for i in range(8)], "bulk")
    start_s = time.monotonic()
    for _ in range(10):
        fan.score([1.0] * 8, "bulk")
    assert time.monotonic() - start_s < 0.9
    assert not first.done()
    assert len(engine.asked) == 88
    first.result()


@pytest.mark.parametrize(("bulk_share", "wanted"), [(0.5, 0.5), (0.2, 0.2), (0.0, 0.0)])
def test_live_goes_first_and_bulk_has_its_share(pool: ThreadPoolExecutor, bulk_share: float, wanted: float) -> None:
    """Of the first hundred questions with both waiting."""
    engine = Slow()
    fan = Fan(engine, 1, bulk_share)
    engine.hold()
    works = [pool.submit(fan.score, ["first"], "bulk")]
    until(lambda: engine.asked == ["first"])
    works += [pool.submit(fan.score, ["bulk"] * 200, "bulk"), pool.submit(fan.score, ["live"] * 200, "live")]
    until(lambda: queued(fan) == 2)
    engine.let_go()
    for work in works:
        work.result()
    assert engine.asked[1:101].count("bulk") == 100 * wanted


def test_what_is_overdue_is_not_asked_about(pool: ThreadPoolExecutor) -> None:
    """Its deadline came while it waited for its turn; the others have theirs."""
    engine = Slow()
    fan = Fan(engine, 1)
    engine.hold()
    held = pool.submit(fan.score, [0.0], "bulk")
    until(lambda: engine.asked == [0.0])
    late = pool.submit(fan.score, [1.0, 2.0, 3.0], "live", [math.inf, time.monotonic() + 0.05, math.inf])
    time.sleep(0.1)
    engine.let_go()
    assert late.result()[0] == [1.0, OVERDUE, 3.0]
    held.result()
    assert 2.0 not in engine.asked


def test_a_question_ends_at_its_deadline() -> None:
    """The server is not waited for beyond it, and is told."""
    engine = Slow(lambda one: 5.0 * (one == 1.0))
    fan = Fan(engine, 2)
    start_s = time.monotonic()
    outcomes, _ = fan.score([0.0, 1.0], "live", [math.inf, start_s + 0.1])
    assert outcomes == [0.0, OVERDUE]
    assert time.monotonic() - start_s < 1
    assert engine.cancelled == [1.0]


def test_an_engine_that_is_away_is_an_outcome_and_a_failure_is_raised() -> None:
    """As of the batcher: who is away blames nobody. Others of the same claim were asked about all the same."""
    engine = Slow()
    fan = Fan(engine, 2)
    outcomes, _ = fan.score([1.0, "away", 2.0], "bulk")
    assert outcomes[0::2] == [1.0, 2.0]
    assert isinstance(outcomes[1], EngineAwayError)
    with pytest.raises(RuntimeError, match="bad input"):
        fan.score([1.0, "bad", 3.0], "bulk")
    assert engine.asked[-1] == 3.0
    with pytest.raises(ContractError):
        fan.score([math.nan], "bulk")


def test_alone_is_alone(pool: ThreadPoolExecutor) -> None:
    """It waits for what is in flight, nothing starts beside it, and afterwards all goes on; also when it fails."""
    engine = Slow(lambda one: 0.01 if isinstance(one, str) else 0.01 + one / 300)
    fan = Fan(engine, 4)
    beside: list[int] = []
    outcomes: list[Outcome | Exception] = []

    def task() -> None:
        beside.append(engine.now)
        outcomes.extend(fan.score_now((one,)) for one in (7.0, "bad", "away"))
        time.sleep(0.05)
        beside.append(engine.now)
        raise ValueError("of the task")

    works = [pool.submit(fan.score, [float(i) for i in range(20)], "bulk") for _ in range(3)]
    until(lambda: engine.most == 4)
    suspect = pool.submit(fan.alone, task, "live")
    works += [pool.submit(fan.score, [1.0] * 20, "bulk") for _ in range(3)]
    with pytest.raises(ValueError, match="of the task"):
        suspect.result(5)
    for work in works:
        work.result(5)
    assert beside == [0, 0]
    assert outcomes[0] == (7.0,)
    assert [type(one) for one in outcomes[1:]] == [RuntimeError, EngineAwayError]


def test_who_waits_is_not_watched_and_a_loop_that_stands_is_seen(pool: ThreadPoolExecutor) -> None:
    """A slow server is no stall, as long as the loop turns; a loop that hangs is one."""
    engine = Slow(lambda _: 1.2)
    fan = Fan(engine, 2)

    def claimant() -> None:
        with fan.progress.in_hand():
            fan.score([1.0], "bulk")

    work = pool.submit(claimant)
    until(lambda: engine.now == 1)
    time.sleep(1.0)
    assert fan.progress.stalled_s() < 0.9
    work.result(5)
    until(lambda: fan.progress.stalled_s() == 0)
    hung: Future[Any] = pool.submit(claimant)
    until(lambda: engine.now == 1)
    background().call_soon_threadsafe(time.sleep, 1.0)
    time.sleep(0.9)
    assert fan.progress.stalled_s() > 0.3
    hung.result(5)


def test_the_time_of_all_claims_is_the_time_in_which_any_was_in_flight(pool: ThreadPoolExecutor) -> None:
    """Whatever runs beside what."""
    engine = Slow(lambda _: 0.02)
    fan = Fan(engine, 8)
    start_s = time.monotonic()
    works = [pool.submit(fan.score, [1.0] * 20, "bulk") for _ in range(5)]
    shares = [work.result()[1] for work in works]
    assert sum(shares) == pytest.approx(time.monotonic() - start_s, rel=0.2)
    assert max(shares) < 2 * min(shares)


def test_the_end(pool: ThreadPoolExecutor) -> None:
    """What waits is asked about first; what comes later is refused. Nothing of it is left in the loop."""
    engine = Slow(lambda _: 0.02)
    fan = Fan(engine, 1)
    work = pool.submit(fan.score, [1.0] * 10, "bulk")
    until(lambda: engine.now == 1)
    fan.stop()
    assert work.done() or work.result(1)
    assert len(engine.asked) == 10
    with pytest.raises(EndingError):
        fan.score([1.0], "bulk")
    fan.stop()
    assert fan.progress.stalled_s() == 0
    assert not fan._questions


def test_a_process_that_ends_begins_no_more_questions(pool: ThreadPoolExecutor) -> None:
    """Those in flight end, what waits is left to others, as is what comes later; a suspect has its turn."""
    engine = Slow()
    fan = Fan(engine, 2)
    engine.hold()
    works = [pool.submit(fan.score, [1.0, 2.0, 3.0, 4.0], "bulk"), pool.submit(fan.score, [5.0], "live")]
    until(lambda: engine.now == 2 and queued(fan) == 2)
    suspect = pool.submit(fan.alone, lambda: None, "bulk")
    until(lambda: queued(fan) == 3)
    fan.leave()
    assert works[1].result(5)[0] == [LEFT]
    assert fan.score([6.0, 7.0], "live")[0] == [LEFT, LEFT]
    assert not works[0].done()
    assert not suspect.done()
    engine.let_go()
    assert works[0].result(5)[0] == [1.0, 2.0, LEFT, LEFT]
    suspect.result(5)
    assert engine.asked == [1.0, 2.0]
    fan.stop()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["live", "bulk"]),
            st.lists(st.sampled_from([0.0, 1.0, 2.0, None, "away", "bad"]), min_size=1, max_size=9),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 5),
)
def test_any_works_beside_each_other(works: list[tuple[str, list[Any], bool]], in_flight: int) -> None:
    """Whatever comes together: each input has its own outcome, and its failure is raised where it belongs."""
    engine = Slow()
    fan = Fan(engine, in_flight)

    def run(lane: str, inputs: list[Any], alone: bool) -> list[Any]:
        if not alone:
            return fan.score(inputs, lane)[0]
        found: list[Any] = []
        fan.alone(lambda: found.extend(fan.score_now((one,)) for one in inputs), lane)
        return [one[0] if isinstance(one, tuple) else one for one in found]

    results: list[Any] = [None] * len(works)

    def keep(i: int) -> None:
        try:
            results[i] = run(*works[i])
        except RuntimeError as error:
            results[i] = error

    threads = [threading.Thread(target=keep, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    for (_, inputs, alone), said in zip(works, results, strict=True):
        if "bad" in inputs and not alone:
            assert isinstance(said, RuntimeError)
            continue
        for one, outcome in zip(inputs, said, strict=True):
            kind = {"away": EngineAwayError, "bad": RuntimeError}.get(one) if isinstance(one, str) else None
            assert isinstance(outcome, kind) if kind else outcome == one
    assert engine.most <= in_flight
    assert len(engine.asked) == sum(len(inputs) for _, inputs, _ in works)
    fan.stop()


def test_a_tier_asks_on_a_real_ledger(fleet: Fleet) -> None:
    """Photos end once each: with their votes, after the server was away for a while, or as the one that it fails on."""
    away = {3, 9}

    class Positions(Slow):
        async def ask(self, one: Any) -> Any:
            await super().ask(one)
            if one in away:
                away.discard(one)
                raise EngineAwayError("away on purpose")
            if one == 5:
                raise RuntimeError("position 5 on purpose")
            return 5.0 if one % 2 else -5.0

    tier = PROFILE.tier("first")
    engine = Positions(lambda one: 0.001 * (one % 3))
    panel = Panel("first", [Member(PROFILE.models()["first"][0], engine)])
    stop = TierStop(PROFILE, tier, panel, load_positions, fleet.owner, Progress())
    assert isinstance(stop.scorer, Fanout)
    fleet.started.append(stop)
    last = fleet.tier("second", lambda _: 0.0)
    fleet.admit(positions(40))
    for _ in range(2000):
        for one in (stop, last, fleet.collector):
            one.serve()
        fleet.owner._route()
        if not fleet.ledger.snapshot([]).use.get("items"):
            break
    rows = fleet.rows("s-1")
    assert len(rows) == 40
    assert {i for i, row in rows.items() if not row["votes"]} == {5}
    assert rows[5]["reason"] == "engine-error"
    assert not away
    tally = fleet.ledger.snapshot(["first"]).tallies["first"]
    assert tally["scored"] == 39
    assert tally["device_us"] > 0


def test_a_stored_photo_is_not_decoded_for_a_server(redis_client: redis.Redis) -> None:
    """The loader hands over what is stored, whatever it is: to decode it would be work for nothing."""
    store = ServerPhotos(redis_client)
    items = positions(2)
    store.put(items[0].source, [(0, b"stored as it is"), (1, b"and the next")])
    found = photo_loader(store, solo(Slow()), lambda: None)(items)
    assert [one[0] for one in found if not isinstance(one, PhotoError)] == [b"stored as it is", b"and the next"]


def test_what_was_left_is_another_ones_at_once(fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    """Told to end in the middle of a claim, a tier settles what it asked, and gives the rest back without a fault."""
    engine = Slow()
    panel = Panel("first", [Member(PROFILE.models()["first"][0], engine)])
    tier = replace(PROFILE.tier("first"), server=Server(in_flight=3))
    stop = TierStop(PROFILE, tier, panel, lambda items: [(-5.0,) for _ in items], fleet.owner, Progress())
    fleet.started.append(stop)
    fleet.admit(positions(10))
    engine.hold()
    serving = pool.submit(stop.serve)
    until(lambda: engine.now == 3)
    stop.ending.set()
    stop.hurry()
    engine.let_go()
    assert serving.result(5) >= 1
    tally = fleet.ledger.snapshot(["first"]).tallies["first"]
    assert tally["scored"] == len(engine.asked) == 3
    # Ready, and not put off to a later time.
    heir = fleet.tier("first", lambda _: -5.0)
    heir.serve()
    assert fleet.ledger.snapshot(["first"]).tallies["first"]["scored"] == 10
