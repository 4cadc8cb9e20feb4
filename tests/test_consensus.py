"""Many votes, one probability."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.profile import Stack
from routing.consensus import agreement, logit, pool, sigmoid, stack
from routing.decision import P_MIN, consensus
from routing.messages import Vote

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


def formula_of_the_document(votes: list[Vote]) -> float:
    """The consensus that was asked for, as it was written: the weights multiply the confidences."""
    return float(math.prod(v.weight * v.p for v in votes) ** (1 / sum(v.weight for v in votes)))


def test_the_documents_formula_fails_where_ours_holds() -> None:
    """Swap roadwork and none in every vote: ours gives 1 - p, the document's does not, and leaves [0, 1] besides."""
    votes = [Vote("t", "a", 0.9, 1.0, 0), Vote("t", "b", 0.6, 2.0, 0), Vote("t", "c", 0.2, 1.0, 0)]
    swapped = [Vote(v.tier, v.model, 1 - v.p, v.weight, 0) for v in votes]
    ours, other_way = pool(votes), pool(swapped)
    assert ours is not None
    assert other_way == pytest.approx(1 - ours)
    assert formula_of_the_document(swapped) != pytest.approx(1 - formula_of_the_document(votes), abs=0.1)
    heavy = [Vote("t", "a", 0.99, 9.0, 0), Vote("t", "b", 0.99, 9.0, 0)]
    light = [Vote("t", "a", 0.99, 0.1, 0), Vote("t", "b", 0.99, 0.1, 0)]
    assert pool(heavy) == pytest.approx(0.99)
    assert pool(light) == pytest.approx(0.99)
    assert formula_of_the_document(heavy) > 1
    assert formula_of_the_document(light) < 0.01


FITTED = Stack(intercept=-0.5, slopes={"a": 1.0, "b": 0.5}, missing={"b": 0.75})


def test_stack_is_a_logistic_regression_over_log_odds() -> None:
    """Each vote adds its slope times its log-odds; the version of a model and its weight do not matter."""
    p = stack([Vote("t", "a@1", 0.8, 0.0, 0), Vote("u", "b@2", 0.3, 9.0, 0)], FITTED)
    assert p == pytest.approx(sigmoid(-0.5 + logit(0.8) + 0.5 * logit(0.3)))


def test_a_missing_vote_adds_its_own_term() -> None:
    """Abstaining is neither p = 0.5 nor nothing; a model without such a term adds nothing."""
    assert stack([Vote("t", "a@1", 0.8, 1.0, 0)], FITTED) == pytest.approx(sigmoid(-0.5 + logit(0.8) + 0.75))
    assert stack([Vote("t", "b@1", 0.8, 1.0, 0)], FITTED) == pytest.approx(sigmoid(-0.5 + 0.5 * logit(0.8)))


def test_stack_says_nothing_of_votes_that_it_does_not_know() -> None:
    """They are pooled then (routing.decision.consensus)."""
    assert stack([], FITTED) is None
    assert stack([Vote("t", "c@1", 0.9, 1.0, 0)], FITTED) is None


def test_agreement_is_the_share_of_the_larger_side() -> None:
    """Of those that voted; one that abstained is not there."""
    assert agreement([]) == 0.0
    assert agreement([Vote("t", "a", p, 1, 0) for p in (0.9, 0.8, 0.4)]) == pytest.approx(2 / 3)
    assert agreement([Vote("t", "a", p, 1, 0) for p in (0.1, 0.2, 0.4)]) == 1.0


@pytest.mark.parametrize("slope", [60.0, -60.0])
def test_a_stack_is_never_certain(slope: float) -> None:
    """Slopes may round to 0 or 1; a tier that accepts from 1.0 on still settles nothing."""
    votes = [Vote("t", "a@1", 1 - P_MIN, 1.0, 0)]
    p = consensus(votes, Stack(intercept=0.0, slopes={"a": slope}))
    assert p is not None
    assert P_MIN <= p <= 1 - P_MIN
