"""Real pre-trained weights: the trunks that two packages ship, under heads of the project's own."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec, load_model
from producers.scenes import DEMO_SEEDS, render
from routing.decision import calibrate
from tests.engines.checkpoints import scores_of
from tests.engines.contract import holds
from workers.engines import Engine, Runtime, build

KEYS = ["effnet-lite0-head", "focus-vit-head"]


def loaded(spec: ModelSpec) -> Engine:
    """The engine of a row, loaded and warm."""
    engine = build(spec, Runtime(max_batch=2))
    engine.load()
    engine.warm_up()
    return engine


def scenes(count: int) -> tuple[list[Image.Image], list[int]]:
    """Rendered scenes that no model was fitted on, and whether roadwork is in sight: half of each."""
    drawn = [render(DEMO_SEEDS.start + seed) for seed in range(8 * count)]
    chosen = [scene for label in (1, 0) for scene in [one for one in drawn if one[1] == label][: count // 2]]
    return [image for image, _ in chosen], [label for _, label in chosen]


@pytest.mark.parametrize("key", KEYS)
def test_real_weights_score_a_scene(key: str) -> None:
    """The real trunk and the head score scenes, the same each time and in any company, each by itself."""
    pictures, _ = scenes(4)
    scores = holds(loaded(load_model(key)), pictures)
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize("key", KEYS)
def test_scenes_with_roadwork_score_higher(key: str) -> None:
    """Of 24 scenes the model ranks one with roadwork above one without far more often than chance would.

    Were it chance, an area under the curve of 0.75 with twelve of each would come once in sixty times.
    """
    pictures, labels = scenes(24)
    scores = np.array(scores_of(loaded(load_model(key)), pictures), dtype=float)
    yes, no = scores[np.array(labels) == 1], scores[np.array(labels) == 0]
    assert (yes[:, None] > no[None, :]).mean() >= 0.75
    calibrator = load_model(key).calibrator
    assert all(0 < calibrate(score, calibrator) < 1 for score in scores)


@pytest.mark.parametrize("key", KEYS)
def test_the_head_is_what_decides(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the head's signs turned every score turns, less the bias: the score is linear in what the trunk sees."""
    pictures, _ = scenes(2)
    spec = load_model(key)
    scores = np.array(scores_of(loaded(spec), pictures), dtype=float)
    with np.load(spec.path) as held:
        weight, bias = held["weight"], float(held["bias"])
    turned = tmp_path / "turned.npz"
    np.savez(turned, weight=-weight, bias=np.float32(0))
    monkeypatch.setattr("workers.engines.probe.find", lambda _: turned)
    assert np.array(scores_of(loaded(spec), pictures), dtype=float) == pytest.approx(bias - scores, abs=1e-3)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"package": "no_such_package"},
            "the package no_such_package, which is not installed: pip install",
        ),
        ({"trunk": "models/other"}, "No such file or directory .*models/other"),
        ({"sha256": "0" * 64}, "is not the trunk that the head was fitted on"),
    ],
)
def test_a_trunk_that_is_missing_is_said(key: str, changed: dict[str, str], says: str) -> None:
    """No package, no file in it, or another file: one clear line with the remedy."""
    spec = load_model(key)
    other = msgspec.structs.replace(spec, options=spec.options | changed)
    with pytest.raises(ConfigError, match=says):
        loaded(other)


def test_a_head_of_another_trunk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of another width, and a file that is no head, are refused at load."""
    spec = load_model("focus-vit-head")
    path = tmp_path / "head.npz"
    monkeypatch.setattr("workers.engines.probe.find", lambda _: path)
    np.savez(path, weight=np.zeros(7, np.float32), bias=np.float32(0))
    with pytest.raises(ConfigError, match=r"is for features of \(7,\), the trunk's are \(1152,\)"):
        loaded(spec)
    path.write_bytes(b"no head")
    with pytest.raises(ConfigError, match="is no head"):
        loaded(spec)
