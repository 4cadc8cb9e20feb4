"""Where an item goes next."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.model import Calibrator
from configs.profile import Tier
from routing.decision import P_MIN, calibrate, decide, logit, pool, settle_held, sigmoid, vote, with_vote
from routing.messages import Item, Verdict, Vote

TIER = Tier(name="small", model="m", accept_above=0.9, accept_below=0.1)
NOW_MS = 1_000_000


def item(*p: float, deadline_ms: int = 0, weight: float = 1.0) -> Item:
    votes = tuple(Vote("small", "m@1", x, weight, 1.0) for x in p)
    return Item(
        source="s",
        position=0,
        origin="o",
        label=1,
        sha256=bytes(32),
        stored_bytes=0,
        size_px=(1, 1),
        votes=votes,
        deadline_ms=deadline_ms,
    )


probabilities = st.floats(P_MIN, 1 - P_MIN)
votes_lists = st.lists(
    st.builds(Vote, st.just("t"), st.just("m"), probabilities, st.floats(0.01, 100), st.just(0.0)),
    min_size=1,
    max_size=8,
)


@given(votes_lists)
def test_pool_is_symmetric(votes: list[Vote]) -> None:
    """Swapping p and 1 - p in every vote gives 1 - the pool."""
    swapped = [Vote(v.tier, v.model, 1 - v.p, v.weight, v.latency_ms) for v in votes]
    first, second = pool(votes), pool(swapped)
    assert first is not None
    assert second is not None
    assert math.isclose(first, 1 - second, abs_tol=1e-6)


@given(votes_lists)
def test_pool_lies_between_its_votes(votes: list[Vote]) -> None:
    """A pool is neither surer than its surest vote nor less sure than its least sure one."""
    p = pool(votes)
    assert p is not None
    assert min(v.p for v in votes) - 1e-9 <= p <= max(v.p for v in votes) + 1e-9


def test_pool_is_the_weighted_mean_of_log_odds() -> None:
    """Two votes of weights 1 and 3 pool to the weighted mean of their log-odds."""
    p = pool([Vote("a", "m", 0.2, 1, 0), Vote("b", "m", 0.9, 3, 0)])
    assert p == pytest.approx(sigmoid((logit(0.2) + 3 * logit(0.9)) / 4))


@pytest.mark.parametrize("votes", [[], [Vote("a", "m", 0.9, 0.0, 0)]])
def test_nothing_to_pool(votes: list[Vote]) -> None:
    """Without a vote of any weight there is no probability, not 0.5."""
    assert pool(votes) is None


def test_sigmoid_does_not_overflow() -> None:
    """Logits of any size give a probability."""
    assert sigmoid(-1e5) == 0
    assert sigmoid(1e5) == 1


def test_calibrate_is_platt_and_never_certain() -> None:
    """A raw logit is scaled, shifted and squashed; what comes out can be outvoted."""
    assert calibrate(2.0, Calibrator(slope=0.5, intercept=-1.0)) == pytest.approx(0.5)
    assert calibrate(1e9, Calibrator()) == 1 - P_MIN
    assert calibrate(-1e9, Calibrator()) == P_MIN
    assert calibrate(float("inf"), Calibrator()) == 1 - P_MIN


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    """A broken engine is heard, not averaged."""
    with pytest.raises(ValueError, match="not a number"):
        calibrate(float("nan"), Calibrator())


def test_abstaining_is_no_vote() -> None:
    """An engine's None leaves the votes as they were and forgets the faults."""
    assert vote(None, Calibrator(), TIER, "m@1", 1.0) is None
    assert with_vote(item(0.3), None).votes == item(0.3).votes


@pytest.mark.parametrize("p", [0.9, 0.95, 0.1, 0.01])
def test_sure_items_settle(p: float) -> None:
    """At a threshold or beyond it the tier settles."""
    end = decide(item(p), TIER, "large", NOW_MS)
    assert isinstance(end, Verdict)
    assert (end.p, end.tier, end.reason) == (p, "small", "")


@pytest.mark.parametrize("p", [0.11, 0.5, 0.89])
def test_unsure_items_climb(p: float) -> None:
    """Between the thresholds the next tier is asked."""
    assert decide(item(p), TIER, "large", NOW_MS) == "large"


def test_the_last_tier_always_settles() -> None:
    """Where there is nobody left to ask, the pool decides."""
    end = decide(item(0.5, 0.6), TIER, None, NOW_MS)
    assert isinstance(end, Verdict)
    assert end.p == pytest.approx(pool(item(0.5, 0.6).votes))


def test_no_vote_climbs_and_at_the_end_is_a_void() -> None:
    """An item that every tier abstained on is quarantined, with that reason."""
    assert decide(item(), TIER, "large", NOW_MS) == "large"
    end = decide(item(), TIER, None, NOW_MS)
    assert isinstance(end, Verdict)
    assert end.void
    assert end.reason == "no-vote"


def test_a_vote_of_no_weight_decides_nothing() -> None:
    """Weight 0: recorded, but neither settles nor counts."""
    assert decide(item(0.99, weight=0.0), TIER, "large", NOW_MS) == "large"


def test_past_its_deadline_an_item_settles_with_what_it_has() -> None:
    """The verdict carries the reason, so that a reader can tell it from a sure one."""
    end = decide(item(0.5, deadline_ms=NOW_MS), TIER, "large", NOW_MS)
    assert isinstance(end, Verdict)
    assert (end.p, end.reason) == (0.5, "deadline")


def test_held_without_votes_is_a_void() -> None:
    """Nothing is made up for an item that nobody looked at."""
    assert settle_held(item(), NOW_MS, "deadline").void
