"""Checkpoints of the real shape at random weights, and the benchmark that runs on them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError
from configs.model import catalogue, load_model
from ops.bench.bare import Bare
from ops.bench.engines import Report
from ops.bench.noise import jpeg, noise
from ops.bench.shape_tokenizers import bart, bert, clip
from ops.bench.shapes import SHAPES, parameters, put
from tests.engines.checkpoints import engine_of, photos, scores_of
from workers.engines import Runtime

#: Models with an engine of ours and no shape here, each with the reason.
SHAPELESS = {
    "yolo-master-n": "its package is a fork on no index",
    "detector-fusion": "it has no weights",
    "anomalyclip": "its code is on no index",
    "cotracker3": "its code is on no index",
    "sam3-agent": "it has the weights of sam3",
    "qwen3-vl-4b-kvpress": "its library has an environment of its own; its shape is in ops/bench/vlm_shape.py",
}

WORDS = ["traffic", "cone", "barrier", "excavator"]


# Depth Anything 3's own, when it is imported.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("key", SHAPES)
def test_it_has_the_parameters_of_the_real_one(key: str) -> None:
    """Within 2 % of the catalogue's count: what differs is heads of another number of classes."""
    spec = load_model(key)
    assert parameters(spec) == pytest.approx(spec.params, rel=0.02)


def test_every_model_has_a_shape_or_a_reason() -> None:
    """A row that gets an engine gets a shape, or it is said why not."""
    run = {
        key
        for key, spec in catalogue().items()
        if spec.engine not in {"", "vllm"} and not spec.replaced_by and not spec.folder.is_dir()
    }
    assert set(SHAPES) | set(SHAPELESS) == run
    assert not set(SHAPES) & set(SHAPELESS)


def test_a_model_without_a_shape_is_named(tmp_path: Path) -> None:
    """Asked for one that it does not know, it says which it knows."""
    with pytest.raises(ConfigError, match="'cotracker3': its shape is not known; there are natix-roadwork-vit"):
        put(load_model("cotracker3"), tmp_path)


@pytest.mark.usefixtures("shelf")
def test_a_checkpoint_is_loaded_as_a_published_one(tmp_path: Path) -> None:
    """The real ViT-B/16 is saved in its row's precision, found, loaded and scores; it is made once only."""
    spec = load_model("natix-roadwork-vit")
    folder = put(spec, tmp_path)
    weights = folder / "model.safetensors"
    assert weights.stat().st_size == pytest.approx(2 * spec.params, rel=0.02)
    made = weights.stat().st_mtime_ns
    assert put(spec, tmp_path) == folder
    assert weights.stat().st_mtime_ns == made
    scores = scores_of(engine_of(spec.key, Runtime(max_batch=2)), photos(2))
    assert None not in scores
    assert len(set(scores)) == 2


def test_words_are_a_token_each() -> None:
    """In the vocabularies of the real sizes, with the marks where the real ones are."""
    text = " ".join(WORDS)
    of_bert, of_clip, of_bart = bert(WORDS), clip(WORDS), bart(WORDS, ["<loc_0>", "<loc_1>", "<image>"])
    assert (len(of_bert), len(of_clip), len(of_bart)) == (30_522, 49_408, 50_268)
    assert len(of_bert(text)["input_ids"]) == len(WORDS) + 2
    assert len(of_clip(text)["input_ids"]) == len(WORDS) + 2
    assert of_clip(text)["input_ids"][::5] == [49_406, 49_407]
    assert len(of_bart(f" {text}<loc_1>")["input_ids"]) == len(WORDS) + 3
    assert of_bart("<loc_1>")["input_ids"] == [0, 50_266, 2]
    assert of_bart.image_token_id == 50_267


def test_photos_are_pairwise_distinct() -> None:
    """No two are alike, as JPEG or as pixels, and one seed gives one photo; by night they are dark."""
    assert len({jpeg(seed, 64) for seed in range(50)}) == 50
    assert len({noise(seed, 32).tobytes() for seed in range(50)}) == 50
    assert jpeg(7, 64) == jpeg(7, 64)
    assert np.asarray(noise(7, 64, light=0.15)).max() < 40


def test_the_benchmark(tmp_path: Path) -> None:
    """A model is measured bare and through a real worker; one that cannot run is a row with its error."""
    out = tmp_path / "out.json"
    argv = ["--weights", str(tmp_path / "weights"), "--device", "cpu", "--keys", "scout-s,cotracker3"]
    argv += ["--seconds", "0.3", "--repeats", "3", "--batches", "1,4", "--side-px", "160", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "ops.bench.engines", *argv, "--out", str(out)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert set(report) == set(Report.__struct_fields__)
    works, fails = report["rows"]
    assert set(works["bare"]) == set(Bare.__struct_fields__)
    assert [speed["batch"] for speed in works["bare"]["speeds"]] == [1, 4]
    for speed in works["bare"]["speeds"]:
        least, most = speed["between"]
        assert 0 < least <= speed["images_per_s"] <= most
    assert works["bare"]["voted"] == "1 of 1"
    assert works["through"]["images"] >= 32
    assert works["through"]["images_per_s"] > 0
    assert works["through"]["error"] == ""
    assert fails["key"] == "cotracker3"
    assert "ConfigError" in fails["bare"]["error"]
    assert "NATIX_FLEET_COTRACKER" in fails["bare"]["error"]
    assert "cotracker3: ConfigError" in done.stdout
