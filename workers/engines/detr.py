"""Runs a transformers detector of the DETR family with classes of its own: D-FINE, RT-DETRv2, RF-DETR.

All three give one logit a query and class, trained with a focal loss: a sigmoid each, and no column for "no object".
RF-DETR's columns are the category ids of COCO, 0 to 90, of which some are nobody's; names come from the checkpoint.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.detections import NOTHING, Detections, Detector
from workers.engines import Runtime, Shot
from workers.engines.night import night_of
from workers.engines.pixels import batch
from workers.engines.square import Pixels, square
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find


class Engine(Detector):
    """One detector on one device.

    A row without classes abstains: its checkpoint knows nothing of roadwork. A row with the option ``night`` abstains
    by daylight.
    """

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        super().__init__(spec.classes)
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)
        self._night = night_of(spec)

    def load(self) -> None:
        """Loads the weights.

        Raises:
            ConfigError: they are missing or no detector's, or the detector lacks one of the row's classes.
        """
        path = find(self._spec)
        model = pretrained(self._spec, lambda: AutoModelForObjectDetection.from_pretrained(path, local_files_only=True))
        processor = pretrained(self._spec, lambda: AutoImageProcessor.from_pretrained(path, local_files_only=True))
        ids = {name: i for i, name in model.config.id2label.items()}
        if missing := [name for name in self._spec.classes if name not in ids]:
            raise ConfigError(f"model {self._spec.key!r}: {path} knows no class {', '.join(missing)}")
        self._labels = tuple(self._spec.classes)
        self._ids = torch.tensor([ids[n] for n in self._labels], dtype=torch.long, device=self._runtime.device)
        plain = not processor.do_normalize
        self._mean = (0.0, 0.0, 0.0) if plain else tuple(processor.image_mean)
        self._std = (1.0, 1.0, 1.0) if plain else tuple(processor.image_std)
        self._model = place(model, self._dtype, self._runtime)

    def warm_up(self) -> None:
        """Looks at one full batch of grey, also where the row has no classes: that shows that the weights are sound."""
        grey = Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127))
        self._look([square(grey, self._spec.input_px)] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Pixels | None:  # noqa: ARG002 - the contract's
        """The photo as a square, stretched, as the library's own processor makes it; None: it is not dark."""
        pixels = square(photo, self._spec.input_px)
        return self._night.see(pixels) if self._night else pixels

    def detect(self, inputs: Sequence[Pixels]) -> list[Detections]:
        """The boxes of the row's classes.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        if not self._labels:
            return [NOTHING] * len(inputs)
        return [found for part in parts(inputs, self._runtime.max_batch) for found in self._look(part)]

    def _look(self, part: Sequence[Pixels]) -> list[Detections]:
        with inference():
            pixels = batch(part, self._runtime.device, self._dtype, self._mean, self._std)
            out: Any = self._model(pixel_values=pixels)
            scores = out.logits[..., self._ids].float().sigmoid().cpu()
            boxes = corners(out.pred_boxes.float()).cpu()
        return [self._select(s, b) for s, b in zip(scores, boxes, strict=True)]

    def _select(self, scores: torch.Tensor, boxes: torch.Tensor) -> Detections:
        """Of one photo: (queries, classes) scores and (queries, 4) boxes."""
        query, kind = (scores >= self._spec.least_score).nonzero(as_tuple=True)
        labels = tuple(self._labels[i] for i in kind.tolist())
        return Detections(boxes[query].numpy(), scores[query, kind].numpy(), labels)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) of centre x, centre y, width, height to left, top, right, bottom, within 0 to 1."""
    x, y, w, h = boxes.unbind(-1)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).clamp(0, 1)
