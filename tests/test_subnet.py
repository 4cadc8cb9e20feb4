"""The subnet's score against the validator's rules, written out with scikit-learn."""

import math
import random

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, matthews_corrcoef

from workers.subnet import NO_ANSWER, SubnetScore


def _metrics(labels: list[int], predictions: list[float], window: int) -> tuple[float, float]:
    """MCC and accuracy as the validator computes them: from scratch, over the last ``window`` responses."""
    kept = [(label, p) for label, p in zip(labels[-window:], predictions[-window:], strict=True) if p != NO_ANSWER]
    if not kept:
        return 0.0, 0.0
    truth = np.array([label for label, _ in kept])
    decided = np.round(np.array([p for _, p in kept]))
    try:
        # numpy warns of what scikit-learn then refuses; the validator only sees the refusal.
        with np.errstate(invalid="ignore"):
            accuracy = float(accuracy_score(truth, decided))
            several = len(np.unique(truth)) > 1 and len(np.unique(decided)) > 1
            return (max(0.0, float(matthews_corrcoef(truth, decided))) if several else 0.0), accuracy
    except ValueError:
        return 0.0, 0.0


#: What a stream may hold besides honest answers, and how often.
STREAMS: dict[str, tuple[float, tuple[float, ...]]] = {
    "honest": (0.0, (0.5,)),
    "halves": (0.3, (0.5,)),
    "time-outs": (0.2, (NO_ANSWER,)),
    "mostly time-outs": (0.93, (NO_ANSWER,)),
    "out of range": (0.02, (1.7, -0.7, 1.5, 2.5, -0.5, 37.2, -1.2)),
    "not numbers": (0.004, (math.nan, math.inf, -math.inf)),
    "all of it": (0.15, (0.5, NO_ANSWER, NO_ANSWER, 1.7, -3.0, math.nan)),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("prevalence", "skill"), [(0.5, 0.9), (0.02, 0.3)])
def test_every_step_equals_the_validator(stream: str, prevalence: float, skill: float) -> None:
    """MCC, accuracy and reward are, all along a stream, what the validator's code would compute from scratch."""
    share, strange = STREAMS[stream]
    rng = random.Random(f"{stream} {prevalence} {skill}")
    score, labels, predictions = SubnetScore(), list[int](), list[float]()
    for step in range(300):
        label = int(rng.random() < prevalence)
        right = rng.random() < skill
        p = rng.choice(strange) if rng.random() < share else abs((label if right else 1 - label) - rng.random() * 0.49)
        labels.append(label)
        predictions.append(p)
        score.push(label, p)
        # From scratch is slow: each of the first 20, then every third.
        if step < 20 or step % 3 == 0:
            mcc, accuracy = _metrics(labels, predictions, 100)[0], _metrics(labels, predictions, 10)[1]
            penalty = 0.0 if p == NO_ANSWER or p < 0 or p > 1 else 1.0
            assert score.mcc == pytest.approx(mcc, abs=1e-12)
            assert score.accuracy == pytest.approx(accuracy, abs=1e-12)
            assert score.reward == pytest.approx(penalty * (0.5 * mcc + 0.5 * accuracy) ** 3, abs=1e-12)


def _pushed(*responses: tuple[int, float]) -> SubnetScore:
    score = SubnetScore()
    for label, p in responses:
        score.push(label, p)
    return score


def test_nothing_yet_scores_nothing() -> None:
    """Before the first response every figure is 0."""
    score = SubnetScore()
    assert (score.mcc, score.accuracy, score.reward) == (0.0, 0.0, 0.0)


def test_time_outs_take_slots() -> None:
    """Nine time-outs leave one answer in the accuracy's ten, and 100 push all answers out."""
    score = _pushed((0, 0.9), (1, 0.9), *[(1, NO_ANSWER)] * 9)
    assert score.accuracy == 1.0
    assert score.reward == 0.0
    score = _pushed((0, 0.1), (1, 0.9), *[(1, NO_ANSWER)] * 100)
    assert (score.mcc, score.accuracy) == (0.0, 0.0)


def test_a_half_is_a_no() -> None:
    """0.5 rounds to 0, half to even."""
    assert _pushed((0, 0.5)).accuracy == 1.0
    assert _pushed((1, 0.5)).accuracy == 0.0


def test_one_class_scores_no_mcc_however_right() -> None:
    """All right on one class: accuracy 1, MCC 0, so the reward is 0.125."""
    assert _pushed(*[(1, 0.9)] * 20).reward == pytest.approx(0.125)


def test_a_prediction_outside_the_range_hurts_for_a_hundred_steps() -> None:
    """1.7 costs its own reward at once, and lowers MCC as a third class until it leaves the window."""
    perfect = [(i % 2, float(i % 2)) for i in range(99)]
    score = _pushed(*perfect, (1, 1.7))
    assert score.reward == 0.0
    assert 0.9 < score.mcc < 1.0
    for label, p in perfect:
        score.push(label, p)
        assert score.mcc < 1.0
    score.push(1, 1.0)
    assert (score.mcc, score.accuracy, score.reward) == (1.0, 1.0, 1.0)


def test_an_unlabelled_response_is_refused() -> None:
    """The validator always knows its label."""
    with pytest.raises(ValueError, match="labels are 0 and 1"):
        SubnetScore().push(-1, 0.3)
