"""Makes a checkpoint of a served model in fewer bits, in the interpreter that has llm-compressor (ops.quantize_apart).

What is quantised are the linear layers of the language model. Its vision tower, what joins the two, the embeddings, the
routers of experts and lm_head keep their precision: they are a small share of the bytes, and the ones that hurt most.
"""

import json
import math
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import click
from msgspec import Struct

from configs.errors import ConfigError, DiskError, FleetError, SourceError, UsageError
from configs.model import ModelSpec, load_model
from configs.prompt import load_prompt
from configs.serving import Serving
from ops.quantize_process import quantised
from workers.weights import find
from workers.yes_no import NO, YES

#: Names the interpreter that has llm-compressor; its packages and vLLM's cannot live together.
PYTHON_VARIABLE = "NATIX_FLEET_PYTHON_QUANTIZE"
_ASK = "import importlib.util, sys; sys.exit(importlib.util.find_spec('llmcompressor') is None)"
_ASK_WITHIN_S = 30.0

Bits = Literal["fp8", "int8", "int4"]
#: Presets of compressed-tensors. Weights each, by output channel or in groups of 128 inputs; activations: fp8 and int8
#: by token as they come, so that neither needs photos; int4 none.
SCHEMES: Mapping[Bits, str] = {"fp8": "FP8_DYNAMIC", "int8": "W8A8", "int4": "W4A16"}
BITS_A_WEIGHT: Mapping[Bits, int] = {"fp8": 8, "int8": 8, "int4": 4}
GROUP = 128
#: As compressed-tensors and vLLM read them, of the names in the checkpoint.
KEPT = (
    "re:.*lm_head",
    "re:.*embed.*",
    "re:.*visual.*",
    "re:.*vision.*",
    "re:.*mlp1.*",
    "re:.*projector.*",
    "re:.*mlp.gate$",
)
#: Photos whose probability is compared before and after, at most.
COMPARED = 8
PHOTOS = {".jpg", ".jpeg", ".png", ".webp"}
_SPARE_BYTES = 64 << 20
_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


class Tensor(Struct, frozen=True):
    """One of a checkpoint, as the head of its file says."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def module(self) -> str:
        """Of which it is the weight; its own name for what has none."""
        return self.name.removesuffix(".weight")

    @property
    def numbers(self) -> int:
        """So many of them."""
        return math.prod(self.shape)


def print_quantised(key: str, bits: Bits, out: Path, photos: Path | None, samples: int) -> None:
    """Writes the checkpoint of model KEY in fewer bits to a new folder, and says what that changed.

    Args:
        key: of a model that vLLM serves.
        bits: of its language model's weights.
        out: a folder that is not there yet, or empty.
        photos: a folder of photos: 4-bit weights are then rounded by GPTQ, and P is compared before and after.
        samples: photos that GPTQ reads, at most.

    Raises:
        ConfigError: no such model, one that vLLM does not serve, no weights here, no interpreter, or its layers do not
            come apart as the precision needs.
        UsageError: the precision makes no sense for it, or the folder is not empty.
        SourceError: there are no photos.
        DiskError: there is no room, or the folder cannot be written.
        FleetError: llm-compressor failed; with its last lines. Or only the comparison did, and the checkpoint is there.
    """
    out = out.absolute()
    spec = load_model(key)
    serving = _require(spec, bits, out)
    python = _python()
    seen = _photos(photos, samples) if photos else []
    checkpoint = find(spec)
    tensors = [tensor for tensor in heads(checkpoint) if tensor.name.endswith(".weight") or len(tensor.shape) == 3]
    chosen = {tensor.name for tensor in tensors if is_quantised(tensor)}
    _check_layers(spec, bits, tensors, chosen)
    before = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    _require_room(out, before, bits, [tensor for tensor in tensors if tensor.name in chosen])
    order = {
        "checkpoint": str(checkpoint),
        "out": str(out),
        "scheme": SCHEMES[bits],
        "ignore": list(KEPT),
        "trust_remote_code": serving.trust_remote_code,
        "question": load_prompt(serving.prompt),
        "yes": list(YES),
        "no": list(NO),
        "calibration": [str(path) for path in seen] if bits == "int4" else [],
        # The first token of a model that thinks is no answer.
        "compared": [] if serving.thinking_tokens else [str(path) for path in seen[:COMPARED]],
    }
    _require_library(python)
    how = f"GPTQ on {len(seen)} photos" if order["calibration"] else "to the nearest"
    click.echo(f"{key}: {SCHEMES[bits]}, {len(chosen)} of {len(tensors)} weights, rounded {how}", err=True)
    outcome = quantised(python, order, out)
    after = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    click.echo(f"{out}: {before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB, compressed-tensors {outcome.written_by}")
    if outcome.after:
        change = max(abs(b - a) for b, a in zip(outcome.before, outcome.after, strict=True))
        click.echo(f"largest change of the raw P(roadwork) on {len(outcome.before)} photos: {change:.4f}")
    elif seen and not outcome.failure:
        click.echo(f"change of P(roadwork): not measured, {key} thinks before it answers", err=True)
    click.echo("It needs a calibrator of its own: fit one on its votes, the old one is of other numbers.", err=True)
    if outcome.failure:
        raise FleetError(f"{out} is whole and stays, but P(roadwork) was not compared: {outcome.failure}")


def heads(checkpoint: Path) -> Iterator[Tensor]:
    """Every tensor of a folder's safetensors files; no weight is read.

    Raises:
        ConfigError: there is no such file, or one is damaged.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{checkpoint} holds no .safetensors file: quantise a checkpoint as from_pretrained reads it")
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                head = json.loads(file.read(min(length, 1 << 28)))
            for name, what in head.items():
                if name != "__metadata__":
                    yield Tensor(name, what["dtype"], tuple(what["shape"]))
        except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: its head cannot be read: {error}") from None


def is_quantised(tensor: Tensor) -> bool:
    """Whether it is the weight of a linear layer, or of several experts in one, outside what keeps its precision."""
    kept = any(re.match(pattern.removeprefix("re:"), tensor.module) for pattern in KEPT)
    return len(tensor.shape) in {2, 3} and not kept and not tensor.module.endswith("norm")


def _require(spec: ModelSpec, bits: Bits, out: Path) -> Serving:
    if spec.engine != "vllm" or spec.serving is None:
        raise ConfigError(
            f"model {spec.key!r}: its engine is {spec.engine!r}; only what vLLM serves can be quantised here"
        )
    if spec.precision in SCHEMES:
        raise UsageError(
            f"model {spec.key!r}: its row is in {spec.precision} already; quantise the bf16 weights, of a row with "
            'precision = "bf16"'
        )
    try:
        full = out.exists() and any(out.iterdir())
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from None
    if full:
        raise UsageError(f"--out {out} is not empty: name a new folder")
    if out == Path.cwd():
        # It would go with the first failure.
        raise UsageError(f"--out {out} is the folder that you are in: name a new one")
    if bits in spec.quantised:
        click.echo(f"{spec.key}: {spec.quantised[bits]} is published in {bits}; it may be the better one", err=True)
    return spec.serving


def _python() -> str:
    python = os.environ.get(PYTHON_VARIABLE, "")
    if not shutil.which(python):
        cause = f"{PYTHON_VARIABLE} names no interpreter: {python}" if python else f"{PYTHON_VARIABLE} is not set"
        raise ConfigError(
            f"{cause}: make .venv-quantize/stamp and set {PYTHON_VARIABLE}=.venv-quantize/bin/python, or pip install "
            "-r ops/environments/quantize.txt into an interpreter of your own and name that"
        )
    return python


def _require_library(python: str) -> None:
    try:
        subprocess.run([python, "-c", _ASK], capture_output=True, timeout=_ASK_WITHIN_S, check=True)  # noqa: S603 - the operator's
    except (OSError, subprocess.SubprocessError):
        raise ConfigError(
            f"{PYTHON_VARIABLE}: {python} has no llm-compressor: make .venv-quantize/stamp and name "
            ".venv-quantize/bin/python, or pip install -r ops/environments/quantize.txt there"
        ) from None


def _photos(folder: Path, samples: int) -> list[Path]:
    try:
        found = sorted(path.absolute() for path in folder.iterdir() if path.suffix.lower() in PHOTOS)
    except OSError as error:
        raise SourceError(f"--photos {folder}: {error.strerror}") from None
    if not found:
        raise SourceError(f"--photos {folder}: no photo in it ({', '.join(sorted(PHOTOS))})")
    return found[:samples]


def _check_layers(spec: ModelSpec, bits: Bits, tensors: list[Tensor], chosen: set[str]) -> None:
    quantised = [tensor for tensor in tensors if tensor.name in chosen]
    if not quantised:
        raise ConfigError(f"model {spec.key!r}: no linear layer of a language model is in its checkpoint")
    for tensor in quantised:
        if tensor.dtype not in _BYTES:
            raise UsageError(
                f"model {spec.key!r}: {tensor.name} is {tensor.dtype}: its checkpoint is quantised already"
            )
        if bits == "int4" and tensor.shape[-1] % GROUP:
            raise UsageError(
                f"model {spec.key!r}: int4 takes groups of {GROUP} inputs, and {tensor.name} has {tensor.shape[-1]}; "
                "try fp8"
            )


def _require_room(out: Path, before: int, bits: Bits, quantised: list[Tensor]) -> None:
    saved = sum(tensor.numbers * (_BYTES[tensor.dtype] - BITS_A_WEIGHT[bits] / 8) for tensor in quantised)
    need = before - int(saved * 0.95) + _SPARE_BYTES
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise DiskError(f"--out {out}: {error.strerror}") from None
    if free < need:
        raise DiskError(f"--out {out}: {need / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} GB free: make room there")
