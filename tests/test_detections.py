"""From boxes to one score an image: the formula by hand, at its edges, and when a detector has no vote."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.detections import NOTHING, P_MIN, Detections, Detector, noisy_or

SCORES = st.lists(st.floats(0, 1, width=32), max_size=8)


def seen(*boxes: tuple[str, float]) -> Detections:
    corners = np.tile(np.array([0.1, 0.1, 0.2, 0.2], np.float32), (len(boxes), 1))
    return Detections(corners, np.array([score for _, score in boxes], np.float32), tuple(label for label, _ in boxes))


def p(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


class Eyes(Detector):
    """A detector whose boxes are its inputs."""

    def detect(self, inputs: Sequence[Detections]) -> Sequence[Detections]:
        return inputs


def test_formula() -> None:
    """Two witnesses of 0.5 and one of 0.4 at half weight leave 0.5 * 0.5 * 0.8 of doubt."""
    found = seen(("cone", 0.5), ("cone", 0.5), ("barrel", 0.4))
    assert p(noisy_or(found, {"cone": 1.0, "barrel": 0.5})) == pytest.approx(1 - 0.5 * 0.5 * 0.8)


def test_a_label_without_weight_counts_nothing() -> None:
    """A box of another class moves the score neither up nor down."""
    weights = {"cone": 1.0}
    assert noisy_or(seen(("cone", 0.5), ("car", 0.99)), weights) == noisy_or(seen(("cone", 0.5)), weights)


def test_no_box_is_unlikely_and_not_impossible() -> None:
    """Without a box the score is the log-odds of P_MIN: finite."""
    assert noisy_or(NOTHING, {"cone": 1.0}) == pytest.approx(math.log(P_MIN / (1 - P_MIN)))


def test_a_certain_box_is_likely_and_not_certain() -> None:
    """A score of 1 would be infinite log-odds; it is clipped."""
    assert noisy_or(seen(("cone", 1.0)), {"cone": 1.0}) == pytest.approx(math.log((1 - P_MIN) / P_MIN))


@given(SCORES, st.floats(0, 1, width=32), st.floats(0.001, 1))
def test_another_box_never_lowers_it(scores: list[float], more: float, weight: float) -> None:
    """One more witness of roadwork is no witness against it."""
    boxes = [("cone", score) for score in scores]
    weights = {"cone": weight}
    assert noisy_or(seen(*boxes, ("cone", more)), weights) >= noisy_or(seen(*boxes), weights)


def test_a_score_per_photo_in_order() -> None:
    """Each photo is judged by its own boxes."""
    scores = Eyes({"cone": 1.0}).score([NOTHING, seen(("cone", 0.9)), seen(("cone", 0.2))])
    assert [p(score) for score in scores if score is not None] == pytest.approx([P_MIN, 0.9, 0.2])


def test_without_classes_it_abstains() -> None:
    """A checkpoint that knows nothing of roadwork says nothing, whatever it saw; it does not say no."""
    assert Eyes({}).score([NOTHING, seen(("person", 0.9))]) == [None, None]


def test_a_logit_of_the_whole_photo_goes_before_its_boxes() -> None:
    """Where a model says more of a photo than its boxes do, that is its score."""
    found = Detections(NOTHING.boxes, NOTHING.scores, (), logit=1.5)
    assert Eyes({"cone": 1.0}).score([found]) == [1.5]
