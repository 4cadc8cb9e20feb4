"""Sizes in metres from depth and focal length: worked out by hand, at the edges, and in general."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.detections import Detections
from workers.size import KINDS, WIDTHS_M, factor, kind_of, weigh

#: A camera of 1000 px focal length whose photos are 2000 x 1000 px.
FOCAL_PX = 1000.0
SIZE_PX = (2000, 1000)

SIZES = st.floats(1e-3, 1e5)
LABELS = st.sampled_from([*KINDS, "Person"])


def boxes(*rows: tuple[str, tuple[float, float, float, float]]) -> Detections:
    corners = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    return Detections(corners, np.full(len(rows), 0.8, np.float32), tuple(label for label, _ in rows))


def flat(metres: float) -> np.ndarray:
    return np.full((50, 100), metres, np.float32)


@pytest.mark.parametrize(
    ("label", "width_px", "depth_m", "expected"),
    [
        # 30 px at 10 m and 1000 px: 0.30 m.
        ("Traffic cone", 30, 10, 1.0),
        # The ends of the range, exactly 0.25 and 0.40 m: 25 and 40 px at 10 m.
        ("traffic cone", 25, 10, 1.0),
        ("traffic cone", 40, 10, 1.0),
        # 0.60 m is 1.5 times too wide: exp(-1/2).
        ("traffic cone", 60, 10, math.exp(-0.5)),
        # So is 0.25 / 1.5 m too narrow.
        ("traffic cone", 25 / 1.5, 10, math.exp(-0.5)),
        # 0.90 m is 1.5 squared times too wide: exp(-2).
        ("traffic cone", 90, 10, math.exp(-2)),
        # A cone of 4 m, ten times too wide: ln 10 / ln 1.5 is 5.68, and exp(-16.1) is 1e-7.
        ("traffic cone", 400, 10, math.exp(-((math.log(10) / math.log(1.5)) ** 2) / 2)),
        ("road barrier", 100, 10, 1.0),
        ("road barrier", 300, 10, math.exp(-((math.log(2) / math.log(1.5)) ** 2) / 2)),
        ("Machinery Vehicle", 300, 10, 1.0),
        ("excavator", 100, 10, math.exp(-((math.log(2) / math.log(1.5)) ** 2) / 2)),
        ("Traffic Sign", 80, 10, 1.0),
        # 12 m of sign at 100 m.
        ("road work sign", 120, 100, math.exp(-((math.log(10) / math.log(1.5)) ** 2) / 2)),
        ("Person", 4000, 1000, 1.0),
        ("traffic cone", 0, 10, 0.0),
    ],
)
def test_by_hand(label: str, width_px: float, depth_m: float, expected: float) -> None:
    """Inside the range 1, outside by how many times the width is off, whatever the direction."""
    assert factor(label, width_px, depth_m, FOCAL_PX) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_ranges_are_those_that_were_asked_for() -> None:
    """Metres, as required."""
    assert WIDTHS_M == {"cone": (0.25, 0.4), "barrier": (0.8, 1.5), "excavator": (2, 5), "sign": (0.4, 1.2)}
    assert set(KINDS.values()) == set(WIDTHS_M)


def test_names_of_one_kind() -> None:
    """Two models' names for one thing are one kind, and so is the kind's own name; what has no range stays itself."""
    assert kind_of("Traffic cone") == kind_of("traffic cone") == kind_of("cone") == "cone"
    assert kind_of("Barrel/bucket") == "barrel/bucket"
    assert factor("cone", 400, 10, FOCAL_PX) == factor("Traffic cone", 400, 10, FOCAL_PX) < 1


@given(LABELS, SIZES, SIZES, SIZES)
def test_a_factor_is_a_share(label: str, width_px: float, depth_m: float, focal_px: float) -> None:
    """Whatever the numbers, from 0 to 1."""
    assert 0 <= factor(label, width_px, depth_m, focal_px) <= 1


@given(LABELS, SIZES, SIZES, SIZES)
def test_resolution_does_not_matter(label: str, width_px: float, depth_m: float, focal_px: float) -> None:
    """The same photo at twice the resolution: twice the pixels and twice the focal length, the same size."""
    assert factor(label, 2 * width_px, depth_m, 2 * focal_px) == factor(label, width_px, depth_m, focal_px)


@given(st.sampled_from([*KINDS]), SIZES, SIZES)
def test_the_further_out_the_less(label: str, width_px: float, further: float) -> None:
    """Beyond its range a wider box is never more plausible; below it a narrower one never is."""
    least_m, most_m = WIDTHS_M[KINDS[label]]
    wide_px, narrow_px = most_m * FOCAL_PX + width_px, least_m * FOCAL_PX / (1 + width_px)
    assert factor(label, wide_px + further, 1, FOCAL_PX) <= factor(label, wide_px, 1, FOCAL_PX) < 1
    assert factor(label, narrow_px / (1 + further), 1, FOCAL_PX) <= factor(label, narrow_px, 1, FOCAL_PX) < 1


def test_boxes_are_weighed() -> None:
    """Shares of the photo become pixels of the photo as it arrived; labels and boxes stay, scores shrink."""
    # 0.015 of 2000 px are 30 px, 0.03 are 60: 0.3 m and 0.6 m at 10 m.
    found = boxes(
        ("traffic cone", (0.5, 0.4, 0.515, 0.5)),
        ("traffic cone", (0.5, 0.4, 0.53, 0.5)),
        ("Person", (0.1, 0.1, 0.9, 0.9)),
    )
    weighed = weigh(found, flat(10), SIZE_PX, FOCAL_PX)
    assert weighed.labels == found.labels
    assert np.array_equal(weighed.boxes, found.boxes)
    assert weighed.scores.dtype == np.float32
    assert weighed.scores == pytest.approx([0.8, 0.8 * math.exp(-0.5), 0.8], rel=1e-4)


def test_the_depth_is_that_of_the_boxs_middle() -> None:
    """A cone at 10 m before a street at 80 m: what its corners show, and a few wrong pixels, do not count."""
    depth_m = flat(80)
    depth_m[12:38, 30:70] = 10
    depth_m[25, 50] = 500
    # 600 px: an excavator of 6 m at 10 m, and of 48 m at 80 m.
    found = boxes(("excavator", (0.35, 0.1, 0.65, 0.9)))
    expected = math.exp(-((math.log(6 / 5) / math.log(1.5)) ** 2) / 2)
    assert weigh(found, depth_m, SIZE_PX, FOCAL_PX).scores == pytest.approx([0.8 * expected], rel=1e-3)


@pytest.mark.parametrize("nothing", [np.nan, np.inf, 0.0])
def test_a_box_without_depth_keeps_its_score(nothing: float) -> None:
    """Sky has no depth: nothing is said of what is seen in it. One finite pixel is enough to speak."""
    found = boxes(("traffic cone", (0.4, 0.4, 0.6, 0.6)))
    depth_m = flat(nothing)
    assert weigh(found, depth_m, SIZE_PX, FOCAL_PX).scores == pytest.approx([0.8])
    depth_m[25, 50] = 10
    assert weigh(found, depth_m, SIZE_PX, FOCAL_PX).scores == pytest.approx([0.0], abs=1e-3)


@pytest.mark.parametrize(
    "box", [(0.0, 0.4, 0.01, 0.5), (0.99, 0.4, 1.0, 0.5), (0.5, 0.0, 0.51, 0.1), (0.5, 0.9, 0.51, 1.0)]
)
def test_a_box_at_the_edge_is_never_too_narrow(box: tuple[float, float, float, float]) -> None:
    """20 px of a barrier at 10 m are 0.2 m: four times too narrow, unless the rest of it is outside the photo."""
    assert weigh(boxes(("road barrier", box)), flat(10), SIZE_PX, FOCAL_PX).scores == pytest.approx([0.8])
    within = boxes(("road barrier", (0.5, 0.4, 0.51, 0.5)))
    assert weigh(within, flat(10), SIZE_PX, FOCAL_PX).scores[0] < 0.01


def test_a_box_at_the_edge_may_be_too_wide() -> None:
    """What is cut off makes it wider still: 6 m of barrier stay impossible."""
    found = boxes(("road barrier", (0.0, 0.4, 0.3, 0.7)))
    assert weigh(found, flat(10), SIZE_PX, FOCAL_PX).scores[0] < 0.01


def test_a_cone_that_lies_down() -> None:
    """30 px by 75 px, standing or lying, is a cone of 0.30 m; a barrier may not be turned so."""
    standing = boxes(("traffic cone", (0.5, 0.4, 0.515, 0.475)))
    lying = boxes(("traffic cone", (0.5, 0.4, 0.5375, 0.43)))
    assert weigh(standing, flat(10), SIZE_PX, FOCAL_PX).scores == pytest.approx([0.8])
    assert weigh(lying, flat(10), SIZE_PX, FOCAL_PX).scores == pytest.approx([0.8])
    # 1.0 m wide and 5 m high, and the other way round.
    upright = boxes(("road barrier", (0.5, 0.2, 0.55, 0.7)))
    turned = boxes(("road barrier", (0.2, 0.4, 0.45, 0.5)))
    assert weigh(upright, flat(10), SIZE_PX, FOCAL_PX).scores == pytest.approx([0.8])
    assert weigh(turned, flat(10), SIZE_PX, FOCAL_PX).scores[0] < 0.1


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), LABELS)
def test_any_box_has_a_depth(left: float, top: float, right: float, bottom: float, label: str) -> None:
    """However small a box is and wherever it lies, it is weighed by a pixel that exists."""
    box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    scores = weigh(boxes((label, box)), flat(10), SIZE_PX, FOCAL_PX).scores
    assert scores.shape == (1,)
    assert 0 <= scores[0] <= np.float32(0.8)


def test_no_boxes() -> None:
    """Nothing found stays nothing."""
    assert weigh(boxes(), flat(10), SIZE_PX, FOCAL_PX).labels == ()
