"""Checkpoints of ultralytics' smallest models at random weights, whose boxes differ all the same."""

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import torch

from configs.model import ModelSpec
from tests.engines.checkpoints import Shelf

# Before the library: it tells it to stay off the network and to load nothing but models.
import workers.engines.ultralytics  # noqa: F401 # isort: skip
from ultralytics import YOLO, YOLOE  # isort: skip
from ultralytics.nn.tasks import YOLOEModel  # isort: skip

NAMES = ("Person", "Traffic cone", "Machinery Vehicle", "Barrel/bucket", "Car")
CLASSES = {"Traffic cone": 1.0, "Barrel/bucket": 0.5}
PROMPTS = {"traffic cone": 1.0, "an excavator": 0.7}
SPEC = ModelSpec(
    key="yolo26-x",
    level=1,
    state="shape",
    reason="a test",
    file="small.pt",
    engine="ultralytics",
    input_px=96,
    classes=CLASSES,
    least_score=0.005,
)


def excite(model: Any) -> None:
    """Untrained, every box has the same score of almost nothing: makes boxes, classes and scores differ."""
    torch.manual_seed(1)
    pixels = torch.rand(8, 3, SPEC.input_px, SPEC.input_px)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    model.train()
    if isinstance(model, YOLOEModel):
        model.set_classes(list(PROMPTS), embeddings())
    with torch.no_grad():
        # What training would have left: statistics of the features, so that they neither vanish nor grow.
        model(pixels)
    model.eval()
    head = model.model[-1]
    for prefix in ("", "one2one_"):
        for level in getattr(head, f"{prefix}cv2", None) or ():
            torch.nn.init.normal_(level[-1].weight, std=0.1)
        if not isinstance(model, YOLOEModel):
            for level in getattr(head, f"{prefix}cv3", None) or ():
                torch.nn.init.normal_(level[-1].weight, std=0.3)
    with torch.no_grad():
        raw = model(pixels)[1]
    for prefix, one in {"": raw.get("one2many", raw), "one2one_": raw.get("one2one")}.items():
        if one:
            spread(head, prefix, one["scores"])


def spread(head: Any, prefix: str, logits: torch.Tensor) -> None:
    """Logits, (photos, classes, places), become -4, give or take 2: some boxes are seen, and none for sure."""
    if words := getattr(head, f"{prefix}cv4", None):
        gain, shift = 2 / logits.std(), logits.mean()
        for level in words:
            level.logit_scale.data += gain.log()
            level.bias.data.copy_((level.bias - shift) * gain - 4)
        return
    gain, shift = 2 / logits.std((0, 2)), logits.mean((0, 2))
    for level in getattr(head, f"{prefix}cv3"):
        level[-1].weight.data *= gain.view(-1, 1, 1, 1)
        level[-1].bias.data.copy_((level[-1].bias - shift) * gain - 4)


def embeddings() -> torch.Tensor:
    """(1, prompts, 512), of length 1: of no text encoder."""
    torch.manual_seed(2)
    return torch.nn.functional.normalize(torch.randn(1, len(PROMPTS), 512), dim=-1)


@cache
def _saved(kind: str) -> bytes:
    """The library's smallest size of a kind, as the library saves it."""
    torch.manual_seed(0)
    file = BytesIO()
    model = YOLO(kind)
    if not isinstance(model, YOLOE):
        model.model = type(model.model)(kind, nc=len(NAMES), verbose=False)
        model.model.names = dict(enumerate(NAMES))
    excite(model.model)
    model.save(file)
    return file.getvalue()


def small(shelf: Shelf, kind: str = "yolo26n.yaml", key: str = SPEC.key) -> Path:
    """Puts a checkpoint on the shelf."""
    path = shelf.put(key) / SPEC.file
    path.write_bytes(_saved(kind))
    return path


def words(shelf: Shelf, kind: str, key: str = "yoloe-26x") -> tuple[ModelSpec, Path]:
    """Puts a YOLOE and its prompts' embeddings, as the library saves them."""
    path = small(shelf, kind, key)
    model = YOLOE(path)
    model.set_classes(list(PROMPTS), embeddings())
    model.save_prompt_embeddings(path.parent / "embeddings.npz")
    return msgspec.structs.replace(SPEC, key=key, engine="yoloe", classes={}, prompts=PROMPTS), path
