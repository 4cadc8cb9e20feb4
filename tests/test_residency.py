"""Who is awake on a device: the decision as a table and under a machine of random arrivals, the tiers' bookkeeping."""

import math
import random
import time
from pathlib import Path

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from configs.errors import ConfigError
from configs.profile import Profile, Tier
from configs.serving import Server
from ops.child import ChildState
from ops.residency import Moves, Place, Sleeper, choose
from ops.residency_control import Residency
from ops.server import EmbeddedServer
from ops.sleeping_tier import SleepingTier
from ops.vllm_children import Servers, require_wakers
from ops.wakes import FILE, Wakes, median_s, read_wakes
from routing.ledger import PREFIX

NOW = 1000.0
ONE, OTHER, BOTH = frozenset({"cuda:0"}), frozenset({"cuda:1"}), frozenset({"cuda:0", "cuda:1"})


def tier(
    name: str,
    place: Place,
    *,
    devices: frozenset[str] = ONE,
    here_s: float = 60.0,
    waiting: int = 0,
    waited_s: float = 0.0,
) -> Sleeper:
    """One that is there for ``here_s``, before which items wait for ``waited_s``; woken by 10, or after 2 s."""
    since_s = NOW - waited_s if waiting else math.inf
    return Sleeper(name, devices, place, NOW - here_s, waiting, since_s, wake_items=10, wake_after_s=2.0, awake_s=20.0)


WAKE_A, SLEEP_A, NOTHING = Moves(wake=("a",)), Moves(sleep=("a",)), Moves()


@pytest.mark.parametrize(
    ("sleepers", "moves"),
    [
        ([tier("a", "asleep")], NOTHING),
        ([tier("a", "asleep", waiting=9, waited_s=1.9)], NOTHING),
        ([tier("a", "asleep", waiting=10)], WAKE_A),
        ([tier("a", "asleep", waiting=1, waited_s=2.0)], WAKE_A),
        ([tier("a", "off")], WAKE_A),
        ([tier("a", "away", waiting=99, waited_s=99)], NOTHING),
        # It stays awake while nobody else wants its device, dry or not.
        ([tier("a", "awake"), tier("b", "asleep")], NOTHING),
        ([tier("a", "awake"), tier("b", "asleep", waiting=5, waited_s=1)], NOTHING),
        # Its turn, then the neighbour's, whether it still has work or not.
        ([tier("a", "awake", here_s=19.9), tier("b", "asleep", waiting=50, waited_s=9)], NOTHING),
        ([tier("a", "awake", here_s=20.0), tier("b", "asleep", waiting=50, waited_s=9)], SLEEP_A),
        ([tier("a", "awake", waiting=500, waited_s=9), tier("b", "asleep", waiting=50, waited_s=9)], SLEEP_A),
        ([tier("a", "awake", here_s=math.inf), tier("b", "off", here_s=0)], SLEEP_A),
        ([tier("a", "moving"), tier("b", "asleep", waiting=50, waited_s=9)], NOTHING),
        # Another device is another matter.
        ([tier("b", "awake", devices=OTHER, here_s=1), tier("a", "asleep", waiting=50)], WAKE_A),
        # Of several the one that has waited for longest.
        ([tier("b", "asleep", waiting=90, waited_s=3), tier("a", "asleep", waiting=1, waited_s=4)], WAKE_A),
        ([tier("b", "off", here_s=3), tier("a", "asleep", waiting=1, waited_s=4)], WAKE_A),
        # Two devices: both holders must have had their turn, and nobody slips in before it.
        (
            [
                tier("a", "awake", devices=ONE),
                tier("b", "awake", devices=OTHER, here_s=1),
                tier("c", "asleep", devices=BOTH, waiting=50, waited_s=9),
            ],
            NOTHING,
        ),
        (
            [
                tier("a", "asleep", devices=ONE, waiting=50, waited_s=8),
                tier("b", "awake", devices=OTHER, here_s=1),
                tier("c", "asleep", devices=BOTH, waiting=50, waited_s=9),
            ],
            NOTHING,
        ),
        (
            [
                tier("a", "awake", devices=BOTH),
                tier("b", "asleep", devices=ONE, waiting=50, waited_s=9),
                tier("c", "asleep", devices=OTHER, waiting=50, waited_s=8),
            ],
            SLEEP_A,
        ),
        (
            [
                tier("b", "asleep", devices=OTHER, waiting=50, waited_s=9),
                tier("a", "asleep", devices=ONE, waiting=50, waited_s=8),
            ],
            Moves(wake=("b", "a")),
        ),
    ],
)
def test_choose(sleepers: list[Sleeper], moves: Moves) -> None:
    """The table of who wakes and who falls asleep."""
    assert choose(sleepers, NOW) == moves


AWAKE_S, WAKE_AFTER_S, MOVE_S = 5.0, 1.0, 3.0
DEVICES = (ONE, ONE, OTHER, BOTH, OTHER)


class Cards(RuleBasedStateMachine):
    """Five tiers on two cards; items come, servers take their time and die now and then; a second is a step."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.dice = random.Random(0)
        self.sleepers: dict[str, Sleeper] = {}
        #: When a move is over, and where it leads to.
        self.moves: dict[str, tuple[float, Place]] = {}
        self.asked_s: dict[str, float] = {}

    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed: int) -> None:
        self.dice = random.Random(seed)
        for i, devices in enumerate(DEVICES):
            self.sleepers[f"t{i}"] = Sleeper(
                f"t{i}", devices, "off", 0.0, 0, math.inf, wake_items=10, wake_after_s=WAKE_AFTER_S, awake_s=AWAKE_S
            )

    @rule(name=st.sampled_from([f"t{i}" for i in range(len(DEVICES))]), items=st.integers(1, 40))
    def items_come(self, name: str, items: int) -> None:
        one = self.sleepers[name]
        self.set(name, waiting=one.waiting + items, waiting_since_s=min(one.waiting_since_s, self.now_s))

    @rule(name=st.sampled_from([f"t{i}" for i in range(len(DEVICES))]))
    def its_server_dies(self, name: str) -> None:
        if self.sleepers[name].place in {"awake", "asleep"}:
            self.go(name, "off")

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.second()

    def second(self) -> None:
        self.now_s += 1.0
        for name, (until_s, place) in list(self.moves.items()):
            if self.now_s >= until_s:
                del self.moves[name]
                self.go(name, place)
        for name, one in self.sleepers.items():
            if one.place == "awake":
                # A card does fewer a second than may come.
                self.set(name, waiting=max(0, one.waiting - 4), waiting_since_s=math.inf)
            elif one.waiting and one.waiting_since_s == math.inf:
                self.set(name, waiting_since_s=self.now_s)
        chosen = choose(list(self.sleepers.values()), self.now_s)
        for name in chosen.wake:
            assert self.sleepers[name].place in {"off", "asleep"}
            self.begin_move(name, "awake")
        for name in chosen.sleep:
            one = self.sleepers[name]
            assert one.place == "awake"
            assert self.now_s - one.since_s >= AWAKE_S, "it flaps"
            self.begin_move(name, "asleep")

    def begin_move(self, name: str, to: Place) -> None:
        self.moves[name] = (self.now_s + self.dice.uniform(0, MOVE_S), to)
        self.go(name, "moving")

    def go(self, name: str, place: Place) -> None:
        self.set(name, place=place, since_s=self.now_s)

    def set(self, name: str, **fields: object) -> None:
        self.sleepers[name] = replace(self.sleepers[name], **fields)

    @invariant()
    def one_is_awake_on_a_card(self) -> None:
        for card in BOTH:
            has = [s.tier for s in self.sleepers.values() if card in s.devices and s.place in {"moving", "awake"}]
            assert len(has) <= 1, has

    @invariant()
    def nobody_waits_for_more_than_everybodys_turn(self) -> None:
        turn_s = AWAKE_S + 2 * (MOVE_S + 1.0) + 1.0
        for one in self.sleepers.values():
            if one.asks(self.now_s):
                assert self.now_s - one.asked_s <= WAKE_AFTER_S + len(DEVICES) * turn_s, one


Cards.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCards = Cards.TestCase


def one_served() -> SleepingTier:
    tier = Tier(name="vlm", model="m", residency="sleep", server=Server(wake_items=10, wake_after_s=2, awake_s=20))
    return SleepingTier(tier, ONE, "http://127.0.0.1:1", "vlm-server")


def state(phase: str, restarts: int = 0, name: str = "vlm-server", *, proven: bool = False) -> dict[str, ChildState]:
    return {name: ChildState(name, None, phase, restarts, None, proven)}


def where(one: SleepingTier) -> Place:
    """A call, so that no type checker takes a place that it saw for the one there is."""
    return one.place


def test_a_server_waits_for_leave_starts_and_has_no_turn_of_its_own() -> None:
    """From its first start to its sleep: what comes up for nobody yields at once."""
    one = one_served()
    one.settle(state("waiting"), NOW)
    assert where(one) == "away", "its forerunners are not there yet"
    one.due_s = NOW
    one.settle(state("waiting"), NOW + 1)
    assert where(one) == "off"
    assert choose([one.seen(NOW + 1)], NOW + 1).wake == ("vlm",)
    one.leave = 0
    for phase in ("waiting", "starting", "ready"):
        one.settle(state(phase), NOW + 2)
        assert where(one) == "moving"
    one.asleep = False
    one.settle(state("ready"), NOW + 30)
    assert where(one) == "awake"
    assert one.leave is None
    assert one.seen(NOW + 30).yields(NOW + 30)


def test_a_server_that_dies_while_it_starts_gives_its_device_back() -> None:
    """Others have it until the supervisor asks for leave again."""
    one = one_served()
    one.due_s, one.leave = NOW, 3
    one.settle(state("starting", 3), NOW)
    one.settle(state("backing off", 4), NOW + 5)
    assert where(one) == "away"
    assert one.leave is None
    one.due_s = NOW + 9
    one.settle(state("backing off", 4), NOW + 9)
    assert where(one) == "off"


def test_work_that_waits_gives_a_server_that_comes_up_its_turn() -> None:
    """It is not put to sleep before its work has been looked at."""
    one = one_served()
    one.settle(state("starting"), NOW)
    one.waits(5, NOW)
    one.asleep = False
    one.settle(state("ready"), NOW + 30)
    assert not one.seen(NOW + 40).yields(NOW + 40)
    assert one.seen(NOW + 50).yields(NOW + 50)


def test_how_long_items_wait_is_seen_by_our_own_clock() -> None:
    """From the first look that finds some, anew after each turn and whenever there are none."""
    one = one_served()
    one.place = "asleep"
    one.waits(1, NOW)
    one.waits(3, NOW + 1)
    assert not one.seen(NOW + 1.9).asks(NOW + 1.9)
    assert one.seen(NOW + 2).asks(NOW + 2)
    one.waits(0, NOW + 2)
    one.waits(3, NOW + 3)
    assert one.waiting_since_s == NOW + 3
    one.place = "awake"
    one.waits(3, NOW + 4)
    assert one.waiting_since_s == math.inf
    one.place, one.not_before_s = "asleep", NOW + 99
    one.waits(50, NOW + 5)
    assert not one.seen(NOW + 20).asks(NOW + 20), "its last wake failed just now"


def one_standing(name: str = "vlm") -> SleepingTier:
    """Its server was there before, and is somebody else's."""
    tier = Tier(name=name, model="m", residency="sleep", server=Server(wake_items=10, wake_after_s=2, awake_s=20))
    return SleepingTier(tier, ONE, "http://127.0.0.1:1")


def test_a_standing_server_that_misses_a_look_has_its_device_all_the_same() -> None:
    """Late once, it is where it was, and its neighbour waits; silent at many looks in a row, it is away."""
    one, neighbour = one_standing(), one_standing("b")
    one.settle({}, NOW)
    assert where(one) == "away", "it never said anything"
    one.asleep, neighbour.asleep = False, True
    for each in (one, neighbour):
        each.settle({}, NOW)
        each.waits(50 if each is neighbour else 0, NOW)
    one.asleep = None
    one.settle({}, NOW + 5)
    assert where(one) == "awake"
    assert choose([one.seen(NOW + 5), neighbour.seen(NOW + 5)], NOW + 5) == NOTHING
    for _ in range(100):
        one.asleep = None
        one.settle({}, NOW + 5)
        one.asleep = False
        one.settle({}, NOW + 5)
        assert where(one) == "awake", "not in a row"
    one.asleep = None
    for _ in range(100):
        one.settle({}, NOW + 9)
    assert where(one) == "away"
    assert choose([one.seen(NOW + 9), neighbour.seen(NOW + 9)], NOW + 9).wake == ("b",)
    one.asleep = True
    one.settle({}, NOW + 10)
    assert where(one) == "asleep"


def test_a_standing_server_has_its_device_between_its_wake_and_its_own_word() -> None:
    """A call that ends between a look and what is made of it leaves no word: the tier moves until there is one."""
    one, neighbour = one_standing(), one_standing("b")
    one.asleep = neighbour.asleep = True
    for each in (one, neighbour):
        each.settle({}, NOW)
        each.waits(50, NOW)
    # As Residency begins a call, and as the call ends.
    one.place, one.since_s, one.calling = "moving", NOW + 1, True
    one.settle({}, NOW + 1)
    one.calling, one.asleep = False, None
    one.settle({}, NOW + 2)
    assert where(one) == "moving"
    assert choose([one.seen(NOW + 2), neighbour.seen(NOW + 2)], NOW + 2) == NOTHING
    one.asleep = False
    one.settle({}, NOW + 3)
    assert where(one) == "awake"


def own_and_neighbour() -> tuple[SleepingTier, SleepingTier]:
    """Engines of the fleet's own that were told to wake at NOW, and a server asleep on their device; work for both."""
    tier = Tier(name="panel", model="m", residency="sleep", server=Server(wake_items=10, wake_after_s=2, awake_s=20))
    one, neighbour = SleepingTier(tier, ONE), one_standing("b")
    neighbour.asleep = True
    neighbour.settle({}, NOW)
    one.settle(state("paused", 7, "panel", proven=True), NOW)
    one.waits(50, NOW)
    neighbour.waits(50, NOW)
    # As Residency begins it.
    one.wanted, one.place, one.since_s = True, "moving", NOW
    return one, neighbour


@pytest.mark.parametrize(("restarts", "after_s"), [(7, 3600.0), (8, 3600.0), (10, 6.0)])
def test_own_engines_that_do_not_come_up_give_their_device_back(restarts: int, after_s: float) -> None:
    """After some minutes, or some failed starts: the neighbour has its turn, and later they ask again."""
    one, neighbour = own_and_neighbour()
    failing = state("backing off", restarts, "panel", proven=True)
    now_s = NOW + 5
    one.settle(state("starting", 9, "panel", proven=True), now_s)
    assert (where(one), one.wanted) == ("moving", True), "so much goes wrong now and then"
    assert choose([one.seen(now_s), neighbour.seen(now_s)], now_s) == NOTHING
    now_s = NOW + after_s
    one.settle(failing, now_s)
    assert not one.wanted
    # Paused by the supervisor, which was told so.
    one.settle(state("paused", restarts, "panel", proven=True), now_s + 1)
    assert where(one) == "asleep"
    assert choose([one.seen(now_s + 1), neighbour.seen(now_s + 1)], now_s + 1).wake == ("b",)
    neighbour.asleep = False
    neighbour.settle({}, now_s + 2)
    assert choose([one.seen(now_s + 30), neighbour.seen(now_s + 30)], now_s + 30).sleep == ("b",), "it asks again"


def test_own_engines_that_end_as_soon_as_they_are_ready_give_their_device_back() -> None:
    """Whoever lasts for a turn has as many failed starts before it as ever."""
    one, _ = own_and_neighbour()
    for restarts in range(7, 10):
        one.settle(state("ready", restarts, "panel"), NOW + restarts)
        one.settle(state("backing off", restarts + 1, "panel"), NOW + restarts + 0.5)
    assert not one.wanted
    one, _ = own_and_neighbour()
    for restarts in range(7, 20):
        one.settle(state("ready", restarts, "panel"), NOW + 100 * restarts)
        one.settle(state("ready", restarts, "panel"), NOW + 100 * restarts + 20)
        one.settle(state("backing off", restarts + 1, "panel"), NOW + 100 * restarts + 50)
        assert one.wanted


def test_the_fleets_own_engines_sleep_by_not_running() -> None:
    """A tier of two processes is awake when both are ready, asleep when both are gone."""
    one = SleepingTier(Tier(name="panel", model="m", residency="sleep", workers=2), ONE)
    both = state("paused", name="panel-0") | state("draining", name="panel-1")
    one.settle(both, NOW)
    assert where(one) == "moving"
    one.settle(both | state("paused", name="panel-1"), NOW)
    assert where(one) == "asleep"
    one.wanted = True
    one.settle(state("ready", name="panel-0") | state("starting", name="panel-1"), NOW)
    assert where(one) == "moving"
    one.settle(state("ready", name="panel-0") | state("ready", name="panel-1"), NOW)
    assert where(one) == "awake"


def test_own_engines_do_not_take_a_device_that_they_cannot_use_yet() -> None:
    """Their workers come after the servers there: one of those that never was ready needs the device first."""
    one = SleepingTier(Tier(name="panel", model="m", residency="sleep"), ONE, after=("a-server", "b-server"))
    panel = state("paused", name="panel") | state("ready", name="a-server", proven=True)
    one.waits(50, NOW)
    for other in ({}, state("waiting", name="b-server"), state("starting", name="b-server")):
        one.settle(panel | other, NOW)
        assert where(one) == "asleep"
        assert not one.seen(NOW + 99).asks(NOW + 99), other
    one.settle(panel | state("backing off", name="b-server", proven=True), NOW)
    assert one.seen(NOW + 99).asks(NOW + 99), "one that was ready once holds nobody up"


def test_a_ledger_that_comes_back_elsewhere_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With another port and password, as the server of each `up` has; that it was away is said once."""
    profile = Profile(name="x", tiers=(Tier(name="vlm", model="qwen3-vl-4b-instruct", residency="sleep"),))
    ledgers: list[EmbeddedServer] = []

    def connect() -> redis.Redis:
        return ledgers[-1].address.connect()

    with Residency(profile, Servers((), {"vlm": "s"}), connect, tmp_path) as residency:
        for i in (3, 5):
            with EmbeddedServer(tmp_path / str(i), fsync="everysec") as server:
                ledgers.append(server)
                server.address.connect().hset(PREFIX + "use", "ready:vlm", i)
                if not residency._thread.is_alive():
                    residency._thread.start()
                until_s = time.monotonic() + 15
                while residency._tiers["vlm"].waiting != i and time.monotonic() < until_s:
                    time.sleep(0.05)
                assert residency._tiers["vlm"].waiting == i
            # Long enough to look in vain a few times.
            time.sleep(2.5)
    assert capsys.readouterr().out.count("cannot see what waits") == 2


def test_nobody_would_wake_what_another_command_keeps() -> None:
    """A run with a ledger of its own says so, and does not wait for ever; servers that stay awake are used."""
    tiers = (Tier(name="vlm", model="m", residency="sleep"), Tier(name="other", model="m"))
    profile = Profile(name="x", tiers=tiers)
    require_wakers(profile, Servers(standing={"vlm": "http://127.0.0.1:1"}, kept=frozenset({"other"})), embedded=True)
    require_wakers(profile, Servers(kept=frozenset({"vlm"})), embedded=False)
    with pytest.raises(ConfigError, match=r"'vlm' sleeps, and natix-fleet vllm start.*natix-fleet vllm stop first"):
        require_wakers(profile, Servers(kept=frozenset({"vlm"})), embedded=True)


def test_a_server_that_follows_no_call_is_of_no_use() -> None:
    """Three calls in vain, or one after which it says nothing for half a minute; one that is starting again is new."""
    one = one_served()
    one.place, one.refusals, one.not_before_s = "moving", 1, NOW + 10
    assert not Residency._useless(one, NOW + 29)
    assert Residency._useless(one, NOW + 31)
    one.place = "awake"
    assert not Residency._useless(one, NOW + 31), "it says where it is, and is told again"
    one.refusals = 3
    assert Residency._useless(one, NOW)
    one.settle(state("starting"), NOW)
    assert not Residency._useless(one, NOW + 99)


def test_wakes_are_kept(tmp_path: Path) -> None:
    """The last hundred of each tier outlive the process; a damaged file is none."""
    wakes = Wakes(tmp_path)
    for i in range(150):
        wakes.note("a", "wake", i)
    wakes.note("a", "sleep", 0.5)
    Wakes(tmp_path).note("b", "wake", 2.0)
    found = read_wakes(tmp_path)
    assert found["a"].wake == [float(i) for i in range(50, 150)]
    assert (found["a"].sleep, found["b"].wake) == ([0.5], [2.0])
    assert median_s(found["a"].wake) == 99.5
    assert median_s([]) is None
    (tmp_path / FILE).write_text("{")
    assert read_wakes(tmp_path) == {}


def test_only_a_move_is_a_wake(redis_client: redis.Redis, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker that is started again while its tier is awake, or that never came up, leaves no seconds of a wake."""
    tier = Tier(name="panel", model="scout-s", residency="sleep", server=Server(wake_items=1, awake_s=99))
    residency = Residency(Profile(name="x", tiers=(tier,)), Servers(), lambda: redis_client, tmp_path)

    def step(phase: str, restarts: int = 0) -> Place:
        residency._states = state(phase, restarts, "panel", proven=True)
        residency._step()
        return residency._tiers["panel"].place

    with residency:
        assert step("paused") == "asleep"
        redis_client.hset(PREFIX + "use", "ready:panel", 5)
        assert [step(phase) for phase in ("paused", "starting", "ready")] == ["moving", "moving", "awake"]
        assert len(read_wakes(tmp_path)["panel"].wake) == 1
        assert [step(phase, 1) for phase in ("backing off", "starting", "ready")] == ["moving", "moving", "awake"]
        assert len(read_wakes(tmp_path)["panel"].wake) == 1
        assert [step(phase, 3) for phase in ("backing off", "paused")] == ["moving", "asleep"]
        assert not residency._tiers["panel"].wanted
    assert capsys.readouterr().out.count("do not come up") == 1
    assert (len(read_wakes(tmp_path)["panel"].wake), read_wakes(tmp_path)["panel"].sleep) == (1, [])
