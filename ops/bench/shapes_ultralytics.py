"""The shapes of the models that ultralytics runs, each from the package's own yaml (ultralytics/cfg/models)."""

from pathlib import Path
from typing import Any

import torch

from configs.errors import ConfigError
from configs.model import ModelSpec

# Before the library: the engine's file tells it to stay off the network.
import workers.engines.ultralytics  # isort: skip # noqa: F401
from ultralytics import YOLO, YOLOE  # isort: skip
from ultralytics.nn.tasks import DetectionModel, YOLOESegModel  # isort: skip

#: By key: the yaml, and the number of classes.
_YAMLS = {"yolo26-x": ("yolo26x.yaml", 365), "yolo11-x": ("yolo11x.yaml", 80), "yoloe-26x": ("yoloe-26x-seg.yaml", 80)}

#: Width of an embedding of a prompt: the yaml's, of the mobileclip2:b text encoder.
_EMBEDDING = 512


def build(spec: ModelSpec) -> Any:
    """The model of a row, on the CPU: the library runs it once to learn its strides, and reads what came out."""
    yaml, classes = _YAMLS[spec.key]
    kind = YOLOESegModel if spec.prompts else DetectionModel
    with torch.device("cpu"):
        model = kind(yaml, nc=classes, verbose=False)
    names = [*spec.classes, *(f"class {number}" for number in range(len(spec.classes), classes))]
    model.names = dict(enumerate(names))
    return model


def save(spec: ModelSpec, model: Any, folder: Path) -> None:
    """The checkpoint as the library writes it, in half precision; for a model of prompts, embeddings beside it.

    Raises:
        ConfigError: the row names no file.
    """
    if not spec.file:
        raise ConfigError(f"model {spec.key!r}: its row names no file")
    library = (YOLOE if spec.prompts else YOLO)(_YAMLS[spec.key][0])
    library.model = model.cpu()
    library.save(folder / spec.file)
    if spec.prompts:
        # Read back: embeddings name the checkpoint that they belong to.
        library = YOLOE(folder / spec.file)
        of_text = torch.nn.functional.normalize(torch.randn(1, len(spec.prompts), _EMBEDDING), dim=-1)
        library.set_classes(list(spec.prompts), of_text)
        library.save_prompt_embeddings(folder / str(spec.options.get("embeddings", "embeddings.npz")))
