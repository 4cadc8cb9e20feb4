"""Checkpoints of the real shape at random weights, where no hub is reachable: for speed and memory, never for scores.

Each is built from its library's own configuration classes, so that an engine loads it exactly as the published one.
That a shape is right is tested by its parameters against the catalogue (tests/engines/test_shapes.py).
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from configs.errors import ConfigError
from configs.model import ModelSpec

#: By key, the module that knows its shape; imported only when asked for.
SHAPES = {
    "natix-roadwork-vit": "ops.bench.shapes_transformers",
    "dinov3-vith16plus": "ops.bench.shapes_transformers",
    "dinov3-heads": "ops.bench.shapes_transformers",
    "dfine-x": "ops.bench.shapes_transformers",
    "night-dfine": "ops.bench.shapes_transformers",
    "rtdetrv2-r50": "ops.bench.shapes_transformers",
    "rf-detr-large": "ops.bench.shapes_transformers",
    "mm-grounding-dino-large": "ops.bench.shapes_transformers",
    "sam3": "ops.bench.shapes_transformers",
    "florence-2-large": "ops.bench.shapes_transformers",
    "da3-metric-large": "ops.bench.shapes_depth",
    "yolo26-x": "ops.bench.shapes_ultralytics",
    "yolo11-x": "ops.bench.shapes_ultralytics",
    "yoloe-26x": "ops.bench.shapes_ultralytics",
}

#: Engines that look for classes of the checkpoint.
DETECTORS = {"detr", "ultralytics"}

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Library(Protocol):
    """A module with the shapes of one library's models."""

    def build(self, spec: ModelSpec) -> Any:
        """The model, on torch's default device."""

    def save(self, spec: ModelSpec, model: Any, folder: Path) -> None:
        """Puts it and all that goes with it into a folder, as workers.weights finds it."""


def parameters(spec: ModelSpec) -> int:
    """How many the shape of a model has; of transformers' models no memory is taken for them."""
    with torch.device("meta"):
        model = _library(spec).build(spec)
    return sum(parameter.numel() for parameter in model.parameters())


def with_a_class(spec: ModelSpec) -> ModelSpec:
    """The row as fine-tuned weights would have it: a detector of COCO's classes alone looks for none, and abstains."""
    if spec.classes or spec.prompts or spec.engine not in DETECTORS:
        return spec
    return msgspec.structs.replace(spec, classes={"roadwork": 1.0})


def put(spec: ModelSpec, root: Path, device: str = "cpu") -> Path:
    """Makes a checkpoint under ``root``/KEY, in the precision of its row; one that lies there is kept.

    Args:
        spec: a row of the catalogue.
        root: what NATIX_FLEET_WEIGHTS names; a memory file system saves the disk.
        device: where random numbers are drawn: a GPU is much faster.

    Returns:
        The folder.

    Raises:
        ConfigError: its shape is not known here.
    """
    folder = root / spec.key
    if not folder.exists():
        torch.manual_seed(0)
        with torch.device(device):
            model = _library(spec).build(spec)
        making = root / f".{spec.key}"
        making.mkdir(parents=True, exist_ok=True)
        _library(spec).save(spec, model.to(_DTYPES.get(spec.precision, torch.float32)).eval(), making)
        # Under its name only when it is whole: one that was interrupted is made again.
        making.rename(folder)
    return folder


def _library(spec: ModelSpec) -> Library:
    if spec.key not in SHAPES:
        raise ConfigError(f"model {spec.key!r}: its shape is not known; there are {', '.join(SHAPES)}")
    library: Any = import_module(SHAPES[spec.key])
    return library  # type: ignore[no-any-return] # a module is no class
