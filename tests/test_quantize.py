"""natix-fleet quantize refuses what cannot come out right, before anything long begins."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

import ops.quantize
from configs.model import load_model
from configs.serving import Serving
from ops.quantize import Tensor, is_quantised, print_quantised
from workers.yes_no import NO, YES

ROOT = Path(__file__).parents[1]
KEY = "qwen3-vl-4b-instruct"
LAYER = "model.language_model.layers.0.mlp.down_proj.weight"


def checkpoint(folder: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file whose head is real and whose weights are zeros."""
    size = {"BF16": 2, "F8_E4M3": 1}
    head, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = at + size[dtype] * shape[0] * shape[1]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(head).encode()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


def quantize(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status and what was said, of a run with an interpreter that would not get far."""
    known = {"NATIX_FLEET_WEIGHTS": str(folder / "weights"), "NATIX_FLEET_PYTHON_QUANTIZE": sys.executable}
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "quantize", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | known | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "said"),
    [
        (["nothing-of-the-kind", "--precision", "fp8"], {}, 78, "neither configs/models.toml nor configs/models/"),
        (["scout-s", "--precision", "fp8"], {}, 78, "only what vLLM serves"),
        ([KEY, "--precision", "int3"], {}, 64, "'int3' is not one of"),
        (
            [KEY, "--precision", "fp8"],
            {"NATIX_FLEET_PYTHON_QUANTIZE": ""},
            78,
            "NATIX_FLEET_PYTHON_QUANTIZE is not set",
        ),
        (
            [KEY, "--precision", "fp8"],
            {"NATIX_FLEET_PYTHON_QUANTIZE": "/nowhere"},
            78,
            "names no interpreter: /nowhere",
        ),
        ([KEY, "--precision", "fp8"], {}, 78, "its weights are not on this machine"),
        ([KEY, "--precision", "int4", "--photos", "nowhere"], {}, 66, "--photos nowhere: No such file"),
        ([KEY, "--precision", "int4", "--photos", "."], {}, 66, "no photo in it"),
    ],
)
def test_a_line_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], status: int, said: str
) -> None:
    """One line with the cause and a named exit status; no folder is left."""
    ended, line = quantize(tmp_path, *arguments, "--out", "out", **environment)
    assert (ended, said in line) == (status, True), line
    assert "Traceback" not in line
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_stays_as_it_is(tmp_path: Path) -> None:
    """Another checkpoint may lie there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").write_text("precious")
    ended, line = quantize(tmp_path, KEY, "--precision", "fp8", "--out", "out")
    assert (ended, "is not empty" in line) == (64, True), line
    assert (tmp_path / "out/model.safetensors").read_text() == "precious"


@pytest.mark.parametrize(
    ("bits", "dtype", "width", "said"),
    [
        ("int4", "BF16", 192, "int4 takes groups of 128 inputs"),
        ("fp8", "F8_E4M3", 256, "its checkpoint is quantised already"),
    ],
)
def test_layers_that_do_not_come_apart(tmp_path: Path, bits: str, dtype: str, width: int, said: str) -> None:
    """The heads of the files tell, in a moment; the weights need not be read."""
    checkpoint(tmp_path / "weights" / KEY, {LAYER: (dtype, (64, width))})
    ended, line = quantize(tmp_path, KEY, "--precision", bits, "--out", "out")
    assert (ended, said in line) == (64, True), line


def test_no_room_is_said_before_it_begins(tmp_path: Path) -> None:
    """A checkpoint of a petabyte, as its head says."""
    checkpoint(tmp_path / "weights" / KEY, {LAYER: ("BF16", (2, 128))})
    path = tmp_path / "weights" / KEY / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    ended, line = quantize(tmp_path, KEY, "--precision", "fp8", "--out", "out")
    assert (ended, "GB are needed and" in line) == (73, True), line


def test_a_failure_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """A llm-compressor without torch: its own words, and the next try finds the folder free."""
    checkpoint(tmp_path / "weights" / KEY, {LAYER: ("BF16", (2, 128))})
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries/llmcompressor.py").write_text("import torch_of_another_time\n")
    path = f"{tmp_path / 'libraries'}:{ROOT}"
    for _ in range(2):
        ended, line = quantize(tmp_path, KEY, "--precision", "fp8", "--out", "out", PYTHONPATH=path)
        assert (ended, "llm-compressor ended with status 1" in line) == (70, True), line
        assert "No module named" in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "shape", "quantised"),
    [
        ("model.language_model.layers.3.self_attn.q_proj.weight", (64, 128), True),
        ("model.language_model.layers.3.mlp.experts.gate_up_proj", (8, 64, 128), True),
        ("model.layers.3.mlp.experts.7.up_proj.weight", (64, 128), True),
        ("model.language_model.layers.3.mlp.gate.weight", (8, 128), False),
        ("model.language_model.layers.3.mlp.gate_proj.weight", (64, 128), True),
        ("model.language_model.layers.3.input_layernorm.weight", (128,), False),
        ("model.language_model.embed_tokens.weight", (600, 128), False),
        ("lm_head.weight", (600, 128), False),
        ("model.visual.blocks.0.mlp.linear_fc1.weight", (64, 128), False),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", (64, 128), False),
        ("mlp1.1.weight", (64, 128), False),
        ("multi_modal_projector.linear_1.weight", (64, 128), False),
    ],
)
def test_the_language_model_is_quantised_and_nothing_else(name: str, shape: tuple[int, ...], quantised: bool) -> None:
    """Names as the checkpoints of Qwen3-VL, InternVL and LLaVA have them."""
    assert is_quantised(Tensor(name, "BF16", shape)) is quantised


#: In place of llm-compressor: it keeps its order and its environment, and says that it is done.
NOTER = """#!{python}
import json, os, pathlib, sys
if sys.argv[1] == "-c":
    sys.exit()  # asked whether it has llm-compressor
order = json.load(sys.stdin)
folder = pathlib.Path(order["out"])
(folder / "order.json").write_text(json.dumps(order))
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
found = [0.5] * len(order["compared"])
said = [{{"written_by": "1", "before": found}}, {{"after": found}}][: 2 if found else 1]
os.write(int(sys.argv[-1]), "".join(json.dumps(one) + "\\n" for one in said).encode())
"""


@pytest.mark.parametrize("thinks", [False, True])
def test_probability_is_compared_where_the_first_token_is_the_answer(
    tmp_path: Path, thinks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the words that the fleet reads. A model that thinks says something else first: then there is no figure."""
    checkpoint(tmp_path / "weights" / KEY, {LAYER: ("BF16", (2, 128))})
    noter = tmp_path / "noter"
    noter.write_text(NOTER.format(python=sys.executable))
    noter.chmod(0o755)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    monkeypatch.setenv("NATIX_FLEET_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("NATIX_FLEET_PYTHON_QUANTIZE", str(noter))
    spec = replace(load_model(KEY), serving=Serving(thinking_tokens=64 * thinks))
    monkeypatch.setattr(ops.quantize, "load_model", lambda _: spec)
    print_quantised(KEY, "fp8", tmp_path / "out", tmp_path / "photos", 8)
    assert ("not measured" in capsys.readouterr().err) == thinks
    order = json.loads((tmp_path / "out/order.json").read_text())
    assert (order["yes"], order["no"]) == (list(YES), list(NO))
    assert len(order["compared"]) == (not thinks)
