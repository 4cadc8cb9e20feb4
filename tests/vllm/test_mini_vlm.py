"""mini-vlm as it is shipped, in the real vLLM: it says what transformers says, and tells roadwork from none."""

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.model import load_model
from configs.prompt import load_prompt
from configs.serving import Serving
from producers.scenes import DEMO_SEEDS, render
from routing.decision import calibrate
from tests.vllm.conftest import ROOT
from tests.vllm.real_server import real_server
from workers.background import wait_for
from workers.engines import Runtime, Shot
from workers.engines.vllm import Engine

SPEC = load_model("mini-vlm")
MOST_BYTES = 8_000_000
SCENES = 40


@pytest.fixture(scope="module")
def url(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the shipped files, in fp32 as on every CPU."""
    log = tmp_path_factory.mktemp("mini-vlm") / "log"
    with real_server(python, SPEC.folder, SPEC.key, log, arguments=["--dtype", "float32"]) as served:
        yield served


@pytest.fixture(scope="module")
def scenes() -> list[tuple[bytes, int]]:
    """Rendered scenes that no training drew, as JPEG, and their labels."""
    found = []
    for seed in DEMO_SEEDS[:SCENES]:
        image, label = render(seed)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        found.append((buffer.getvalue(), label))
    return found


def by_torch(python: str, script: str, *arguments: str) -> list[Any]:
    """What a script of this folder prints, run by the interpreter that has torch."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [python, str(ROOT / "tests/vllm" / script), str(SPEC.folder), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_its_files_are_few_and_small() -> None:
    """All together under 8 MB; the weights are those of its row, the list that of its training photos."""
    sizes = {path.name: path.stat().st_size for path in SPEC.folder.iterdir()}
    assert sum(sizes.values()) < MOST_BYTES
    assert sizes["model.safetensors"] == pytest.approx(SPEC.weight_bytes.bf16, rel=0.01)
    assert len(SPEC.training_photos()) == 278


def test_the_calibrator_is_the_cards() -> None:
    """Nobody changed one without the other."""
    card = (SPEC.folder / "CARD.md").read_text()
    assert SPEC.version in card
    said = re.search(r"slope (-?[\d.]+), intercept (-?[\d.]+\d)", card)
    assert said, "the card names no calibrator"
    assert (float(said[1]), float(said[2])) == pytest.approx(
        (SPEC.calibrator.slope, SPEC.calibrator.intercept), abs=1e-3
    )


def test_the_server_says_what_transformers_says(
    python: str, url: str, scenes: list[tuple[bytes, int]], tmp_path: Path
) -> None:
    """P of rendered scenes agrees to 1e-2, nothing but yes and no is likely, and roadwork is told from none."""
    asked = Engine(SPEC, Runtime(url=url))
    asked.load()
    assert asked.asking.wording.way == "chosen"
    readings = [wait_for(asked.reading(asked.prepare_stored(photo, Shot()))) for photo, _ in scenes]
    paths = [tmp_path / f"{i}.jpg" for i in range(len(scenes))]
    for path, (photo, _) in zip(paths, scenes, strict=True):
        path.write_bytes(photo)
    prompt = load_prompt((SPEC.serving or Serving()).prompt)
    wanted = by_torch(python, "reference.py", prompt, *map(str, paths))
    p = [calibrate(one.score, SPEC.calibrator) for one in readings if one]
    assert p == pytest.approx([calibrate(one["score"], SPEC.calibrator) for one in wanted], abs=1e-2)
    assert max(one.outside for one in readings if one and one.outside is not None) < 0.01
    yes, no = ([one for one, (_, label) in zip(p, scenes, strict=True) if label == truth] for truth in (1, 0))
    assert min(len(yes), len(no)) > 10
    wins = sum((a > b) + (a == b) / 2 for a in yes for b in no)
    assert wins / (len(yes) * len(no)) > 0.9


def test_training_computes_what_transformers_computes(python: str) -> None:
    """Training runs a batched forward pass of its own: it asks in the same words, and its logits are the model's."""
    for said in by_torch(python, "mini_vlm_probe.py", load_prompt("roadwork-1")):
        assert said["same_words"]
        assert said["furthest"] < 1e-3 * max(said["largest"], 1.0)
