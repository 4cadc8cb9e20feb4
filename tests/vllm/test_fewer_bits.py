"""natix-fleet quantize with the real llm-compressor, and its checkpoints in the real vLLM."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ops.quantize import heads
from tests.vllm.conftest import NAME, ROOT
from tests.vllm.real_server import real_server
from tests.vllm.test_kv_blocks import ask, photo_file, say

COMPRESSOR = "NATIX_FLEET_PYTHON_QUANTIZE"
QUANTIZE = [sys.executable, "-m", "ops.cli", "quantize"]
#: Bytes after, of 2,962,392 before: half or a quarter of the layers' own, beside a tower and embeddings that stay.
BYTES = {"fp8": 1_792_592, "int8": 1_792_520, "int4": 1_214_864}


@pytest.fixture(scope="module")
def weights(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint wide enough, under the row's key."""
    assert COMPRESSOR in os.environ, f"{COMPRESSOR} must name the interpreter that has llm-compressor"
    folder = tmp_path_factory.mktemp("weights") / NAME
    command = [python, str(ROOT / "tests/vllm/quantisable_checkpoint.py"), str(folder)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.parametrize("bits", ["fp8", "int8", "int4"])
def test_a_checkpoint_in_fewer_bits(python: str, weights: Path, bits: str, tmp_path: Path) -> None:
    """It is smaller, the tower stays as it was, P moves little, and vLLM serves it without a flag where it can."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(6):
        photo_file(seed).save(photos / f"{seed}.png")
    out = tmp_path / bits
    done = subprocess.run(
        [*QUANTIZE, NAME, "--precision", bits, "--out", str(out), "--photos", str(photos)],
        cwd=ROOT,
        env=os.environ | {"NATIX_FLEET_WEIGHTS": str(weights.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    say(done.stdout.strip())
    after = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    # A head of names is beside the numbers.
    assert after == pytest.approx(BYTES[bits], rel=0.01)
    change = float(re.findall(r"on 6 photos: (\d\.\d+)", done.stdout)[0])
    assert 0 < change < 0.05
    kept = {tensor.dtype for tensor in heads(out) if "visual" in tensor.name or "embed" in tensor.name}
    assert kept == {"BF16"}
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    with real_server(python, out, NAME, tmp_path / "vllm.log") as url:
        assert ask(url, 3)[0] > 0
