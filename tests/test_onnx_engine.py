"""The ONNX engine, on the two models that the project ships."""

import csv
import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
from PIL import Image

import configs.model
from configs.errors import ConfigError
from configs.model import ModelSpec, load_model
from producers.scenes import render
from workers.engines import Runtime, Shot, build
from workers.engines.onnx import THREADS_VARIABLE, Engine
from workers.engines.square import square

PHOTOS = Path(__file__).parents[2] / "shared" / "roadwork-photos"
SCOUTS = ("scout-s", "scout-m")
needs_photos = pytest.mark.skipif(not (PHOTOS / "manifest.csv").exists(), reason=f"no photos at {PHOTOS}")


def loaded(key: str, max_batch: int = 8) -> Engine:
    """The engine of a shipped model, ready."""
    engine = Engine(load_model(key), Runtime("cpu", max_batch))
    engine.load()
    return engine


def auc(labels: list[int], scores: list[float]) -> float:
    """The share of (positive, negative) pairs in the right order."""
    pairs = [(p > n) + (p == n) / 2 for p, y in zip(scores, labels, strict=True) if y
             for n, z in zip(scores, labels, strict=True) if not z]  # fmt: skip
    return sum(pairs) / len(pairs)


def rows(use: str) -> list[dict[str, str]]:
    """The manifest's rows of one use."""
    with (PHOTOS / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["use"] == use]


@pytest.mark.parametrize("key", SCOUTS)
def test_a_photo_scores_the_same_alone_and_in_any_batch(key: str) -> None:
    """Eleven scenes in batches of four give eleven scores, in order, equal to the scores one by one."""
    engine = loaded(key, max_batch=4)
    engine.warm_up()
    inputs = [engine.prepare(render(seed)[0], Shot()) for seed in range(11)]
    together = engine.score(inputs)
    assert len(together) == len(inputs)
    assert together == pytest.approx([engine.score([one])[0] for one in inputs], abs=1e-3)
    assert engine.score([]) == []


@pytest.mark.parametrize("key", SCOUTS)
def test_scouts_tell_demo_scenes_apart(key: str) -> None:
    """On 120 rendered demo scenes, whose seeds training never drew, the AUC is 0.90 or more."""
    engine = loaded(key)
    scenes = [render(seed) for seed in range(120)]
    scores = engine.score([engine.prepare(image, Shot()) for image, _ in scenes])
    assert auc([label for _, label in scenes], scores) >= 0.90


def test_shipped_models_are_small() -> None:
    """scout-s is under 1 MB and scout-m under 6 MB on disk."""
    assert load_model("scout-s").path.stat().st_size < 1_000_000
    assert load_model("scout-m").path.stat().st_size < 6_000_000


@pytest.mark.parametrize("key", SCOUTS)
def test_training_list_names_photos_by_digest(key: str) -> None:
    """Each model lists the 577 photos that it was trained on, as sha256 digests."""
    assert len(load_model(key).training_photos()) == 577


def test_prepare_gives_a_square_of_bytes() -> None:
    """Whatever the photo's shape, the model's input is (side, side, 3) uint8; a photo of that size is not resampled."""
    image = render(1, (320, 480))[0]
    assert square(image, 224).shape == (224, 224, 3)
    assert square(image, 224).dtype == np.uint8
    exact = render(1, (224, 224))[0]
    assert (square(exact, 224) == np.asarray(exact)).all()


def spec_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> ModelSpec:
    """scout-s's specification with its file looked for in ``folder``."""
    monkeypatch.setattr(configs.model, "MODELS", folder)
    (folder / "scout-s").mkdir()
    return msgspec.structs.replace(msgspec.convert({
        "key": "scout-s", "version": "test", "state": "works", "reason": "", "engine": "onnx",
        "file": "model.onnx", "input_px": 224, "licence": "Apache-2.0",
    }, ModelSpec), **changes)  # fmt: skip


def test_a_missing_file_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without weights load() raises ConfigError that names the file."""
    engine = build(spec_of(tmp_path, monkeypatch), Runtime("cpu", 4))
    with pytest.raises(ConfigError, match=r"no file .*model\.onnx") as caught:
        engine.load()
    assert "\n" not in str(caught.value)


def test_a_corrupt_file_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no ONNX model raise ConfigError of one line."""
    spec = spec_of(tmp_path, monkeypatch)
    spec.path.write_bytes(b"not a model" * 100)
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        Engine(spec, Runtime("cpu", 4)).load()
    assert "\n" not in str(caught.value)


def test_a_model_of_another_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model.toml whose input_px is not the model's own is an error at load, not at the first photo."""
    weights = load_model("scout-s").path.read_bytes()
    spec = spec_of(tmp_path, monkeypatch, input_px=192)
    spec.path.write_bytes(weights)
    with pytest.raises(ConfigError, match="192"):
        Engine(spec, Runtime("cpu", 4)).load()


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_a_gpu_that_onnxruntime_cannot_use_is_refused() -> None:
    """A cuda device without the CUDA provider raises ConfigError instead of running on the CPU unseen."""
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        Engine(load_model("scout-s"), Runtime("cuda:0", 4)).load()


def test_threads_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped thread count is refused with the variable's name."""
    monkeypatch.setenv(THREADS_VARIABLE, "many")
    with pytest.raises(ConfigError, match=THREADS_VARIABLE):
        Engine(load_model("scout-s"), Runtime("cpu", 4)).load()


@needs_photos
@pytest.mark.parametrize("key", SCOUTS)
def test_scouts_reach_the_floor_on_photos_never_trained_on(key: str) -> None:
    """The AUC on the 505 evaluate photos is 0.90 or more."""
    engine = loaded(key)
    photos = rows("evaluate")
    inputs = [engine.prepare(Image.open(PHOTOS / "images" / row["file"]).convert("RGB"), Shot()) for row in photos]
    scores = engine.score(inputs)
    found = auc([int(row["label"]) for row in photos], scores)
    assert len(photos) == 505
    assert found >= 0.90


@needs_photos
def test_no_evaluate_photo_was_trained_on() -> None:
    """The training list holds every use=train file's own digest, and none of use=evaluate."""
    trained = load_model("scout-m").training_photos()
    evaluate = {hashlib.sha256((PHOTOS / "images" / row["file"]).read_bytes()).digest() for row in rows("evaluate")}
    assert not trained & evaluate
    assert trained == {hashlib.sha256((PHOTOS / "images" / row["file"]).read_bytes()).digest() for row in rows("train")}
