"""Boxes of several detectors merged, and the panel that has them merged."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.model import ModelSpec
from tests.engines.checkpoints import STILL
from workers.detections import NOTHING, Detections, Detector, noisy_or
from workers.engines import DETECTORS, ENGINES, Runtime, Shot
from workers.engines.fusion import MOST_BOXES, Engine, fuse
from workers.panel import Member, Panel

LEFT, RIGHT = [0.1, 0.4, 0.3, 0.8], [0.6, 0.4, 0.8, 0.8]
SPEC = ModelSpec(key="m", state="shape", reason="", engine="detr", classes={"cone": 1.0})
FUSION = ModelSpec(key="f", state="shape", reason="", engine="fusion", classes={"cone": 1.0, "barrier": 0.5})
DEPTH = ModelSpec(key="d", state="shape", reason="", engine="depth")


def seen(*boxes: tuple[list[float], float, str]) -> Detections:
    return Detections(
        np.array([box for box, _, _ in boxes], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in boxes], np.float32),
        tuple(label for _, _, label in boxes),
    )


def test_two_who_see_the_same_are_one_box_between_them() -> None:
    """Its place is weighted by score, its score the mean, since all who looked saw it."""
    near = [0.12, 0.4, 0.32, 0.8]
    merged = fuse([seen((LEFT, 0.9, "Traffic cone")), seen((near, 0.3, "traffic cone"))])
    assert merged.labels == ("cone",)
    assert merged.scores[0] == pytest.approx(0.6)
    assert merged.boxes[0] == pytest.approx((0.75 * np.array(LEFT) + 0.25 * np.array(near)).tolist())


def test_who_is_alone_counts_for_its_share() -> None:
    """One of three detectors sees it: a third of its score."""
    merged = fuse([seen((LEFT, 0.9, "traffic cone")), NOTHING, NOTHING])
    assert merged.scores[0] == pytest.approx(0.3)


def test_one_detector_that_says_it_twice_is_one_witness() -> None:
    """Two boxes of one detector are no agreement."""
    merged = fuse([seen((LEFT, 0.9, "traffic cone"), (LEFT, 0.7, "traffic cone")), NOTHING])
    assert merged.scores[0] == pytest.approx(0.8 / 2)


def test_other_places_and_other_kinds_stay_apart() -> None:
    """A cone left, a cone right, a barrier left: three things."""
    found = [seen((LEFT, 0.9, "traffic cone"), (RIGHT, 0.8, "traffic cone")), seen((LEFT, 0.7, "road barrier"))]
    merged = fuse(found)
    assert sorted(merged.labels) == ["barrier", "cone", "cone"]
    assert len(merged.boxes) == 3


def test_of_very_many_boxes_the_surest_count() -> None:
    """A detector that sees a thousand things is merged by its best hundred, the best of all among them."""
    dice = np.random.default_rng(0)
    corners = dice.random((1000, 2)) * 0.9
    boxes = np.concatenate([corners, corners + 0.001], 1).astype(np.float32)
    flood = Detections(boxes, dice.random(1000).astype(np.float32), ("traffic cone",) * 1000)
    merged = fuse([flood])
    assert len(merged.boxes) == MOST_BOXES
    assert merged.scores.max() == pytest.approx(flood.scores.max())
    assert merged.scores.min() >= np.sort(flood.scores)[-MOST_BOXES] - 1e-6


def test_the_fusion_scores_what_it_is_handed() -> None:
    """The noisy-or of the merged boxes, by kind; nobody looked: it abstains; nobody saw anything: a low score."""
    engine = Engine(FUSION, Runtime())
    engine.load()
    engine.warm_up()
    both = [seen((LEFT, 0.9, "Traffic cone")), seen((LEFT, 0.7, "traffic cone"))]
    scores = engine.score([both, [], [NOTHING]])
    assert scores == [noisy_or(fuse(both), FUSION.classes), None, noisy_or(NOTHING, FUSION.classes)]
    assert scores[0] > 0 > scores[2]  # type: ignore[operator]


class Sees(Detector):
    """A test's detector: sees the same in every photo."""

    def __init__(self, found: Detections) -> None:
        super().__init__({"cone": 1.0})
        self._found = found

    def load(self) -> None: ...

    def warm_up(self) -> None: ...

    def prepare(self, photo: Image.Image, shot: Shot) -> Image.Image:  # noqa: ARG002 - the contract's
        return photo

    def detect(self, inputs: Sequence[Any]) -> list[Detections]:
        return [self._found for _ in inputs]


class Far:
    """A test's depth model: so many metres everywhere, where the focal length is known."""

    def __init__(self, metres: float) -> None:
        self._metres = metres

    def load(self) -> None: ...

    def warm_up(self) -> None: ...

    def prepare(self, photo: Image.Image, shot: Shot) -> Image.Image | None:
        return photo if shot.focal_px else None

    def measure(self, inputs: Sequence[Any]) -> list[Any]:
        return [np.full((4, 4), self._metres, np.float32) for _ in inputs]

    def score(self, inputs: Sequence[Any]) -> list[float | None]:
        return [None for _ in inputs]


def test_a_panel_has_the_boxes_of_its_detectors_merged() -> None:
    """Two detectors and a fusion: three votes, the fusion's over both."""
    found = seen((LEFT, 0.8, "cone"))
    fusion = Engine(FUSION, Runtime())
    panel = Panel("t", [Member(FUSION, fusion), Member(SPEC, Sees(found), 0.0), Member(SPEC, Sees(NOTHING), 0.0)])
    (scores,) = panel.score([panel.prepare(Image.new("RGB", (8, 8)), STILL)])
    assert scores[1] == noisy_or(found, {"cone": 1.0})
    assert scores[0] == noisy_or(fuse([found, NOTHING]), FUSION.classes)
    assert [vote.weight for vote in panel.votes(scores, 1.0)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("metres", "plausible"), [(10.0, True), (200.0, False)])
def test_an_impossible_size_costs_confidence(metres: float, plausible: bool) -> None:
    """A cone 30 px wide at focal length 1,000 px is 0.3 m at 10 m, and 6 m at 200 m: its score falls."""
    found = seen(([0.5, 0.5, 0.53, 0.6], 0.8, "cone"))
    panel = Panel("t", [Member(SPEC, Sees(found)), Member(DEPTH, Far(metres))])
    shot = Shot(size_px=(1000, 1000), focal_px=1000.0)
    (scores,) = panel.score([panel.prepare(Image.new("RGB", (8, 8)), shot)])
    whole = noisy_or(found, {"cone": 1.0})
    assert scores[1] is None
    assert scores[0] is not None
    assert (scores[0] == pytest.approx(whole)) is plausible
    assert plausible or scores[0] < whole - 3


def test_without_a_focal_length_no_size_is_judged() -> None:
    """The depth model abstains for the photo, and the detector's score stays as it is."""
    found = seen(([0.5, 0.5, 0.53, 0.6], 0.8, "cone"))
    panel = Panel("t", [Member(SPEC, Sees(found)), Member(DEPTH, Far(200.0))])
    (scores,) = panel.score([panel.prepare(Image.new("RGB", (8, 8)), STILL)])
    assert scores[0] == noisy_or(found, {"cone": 1.0})


# Depth Anything 3's own, when it is imported.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
# kvpress has an environment of its own: tests/vllm/test_kvpress.py asks there.
@pytest.mark.parametrize("name", sorted(ENGINES.keys() - {"kvpress"}))
def test_detectors_are_those_that_see_boxes(name: str) -> None:
    """The list that a panel goes by is true of every engine: of one apart it cannot look at the class."""
    engine = import_module(ENGINES[name]).Engine
    assert issubclass(engine, Detector) == (name in DETECTORS)
