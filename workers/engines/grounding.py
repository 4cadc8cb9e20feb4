"""Runs a Grounding DINO of transformers, which finds what it is asked for: MM-Grounding-DINO, Grounding DINO.

Photos keep their shape: the longest side becomes ``input_px``, and what is left of the square, right and below, is
masked. So batches of mixed shapes are one tensor, and a photo's score does not depend on its company, as it would if
each batch were padded to its own largest. The library's processor makes 800 px of the shortest side, up to 1333 px of
the longest; photos of the fleet are no larger than intake left them, and enlarging them adds nothing but time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from PIL import Image
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    GroundingDinoForObjectDetection,
    MMGroundingDinoForObjectDetection,
)

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.detections import Detections, Detector
from workers.engines import Runtime, Shot
from workers.engines.detr import corners
from workers.engines.pixels import batch
from workers.engines.square import Pixels
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find

#: What ends a phrase in the model's text; it cannot be part of one.
ENDS = (".", "?")


class Sheet(Struct, frozen=True):
    """A photo in the upper left corner of a square."""

    #: (side_px, side_px, 3), RGB; black where there is no photo.
    pixels: Pixels
    #: Width and height of the photo there, in pixels.
    size_px: tuple[int, int]


class Engine(Detector):
    """One open-vocabulary detector on one device, asked for all prompts of the row at once."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        super().__init__(spec.prompts)
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)
        self._labels = tuple(spec.prompts)

    def load(self) -> None:
        """Loads the weights and reads the prompts.

        Raises:
            ConfigError: the weights are missing or no Grounding DINO's, or there is no prompt, or one cannot be read.
        """
        path = find(self._spec)
        model = pretrained(
            self._spec, lambda: AutoModelForZeroShotObjectDetection.from_pretrained(path, local_files_only=True)
        )
        if not isinstance(model, GroundingDinoForObjectDetection | MMGroundingDinoForObjectDetection):
            raise ConfigError(f"model {self._spec.key!r}: {path} is a {type(model).__name__}, no Grounding DINO")
        processor = pretrained(self._spec, lambda: AutoProcessor.from_pretrained(path, local_files_only=True))
        self._mean = tuple(processor.image_processor.image_mean)
        self._std = tuple(processor.image_processor.image_std)
        self._read(processor.tokenizer, model.config.max_text_len)
        self._model = place(model, self._dtype, self._runtime)

    def warm_up(self) -> None:
        """Scores one full batch of grey."""
        grey = Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127))
        self.score([self.prepare(grey, Shot())] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Sheet:  # noqa: ARG002 - the contract's
        """The photo, its shape kept, in the corner of a square."""
        return sheet(photo, self._spec.input_px)

    def detect(self, inputs: Sequence[Sheet]) -> list[Detections]:
        """The boxes of every prompt, each with the prompt as its label.

        A box's score for a prompt is the largest sigmoid among the prompt's tokens; the library's own is the largest
        among all tokens of the text, and it names those tokens. So one box may stand here for several prompts.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        found: list[Detections] = []
        for part in parts(inputs, self._runtime.max_batch):
            with inference():
                mask = self._mask(part)
                pixels = batch([s.pixels for s in part], self._runtime.device, self._dtype, self._mean, self._std)
                out: Any = self._model(
                    # What is no photo is nought after normalisation, as the library pads.
                    pixel_values=pixels * mask[:, None],
                    pixel_mask=mask,
                    input_ids=self._ids.expand(len(part), -1),
                    token_type_ids=torch.zeros_like(self._ids).expand(len(part), -1),
                    attention_mask=torch.ones_like(self._ids).expand(len(part), -1),
                )
                tokens = out.logits.float().sigmoid()
                scores = torch.stack([tokens[..., of_one].amax(-1) for of_one in self._tokens], -1).cpu()
                boxes = corners(out.pred_boxes.float()).cpu()
            found += [self._select(s, b) for s, b in zip(scores, boxes, strict=True)]
        return found

    def _read(self, tokenizer: Any, most: int) -> None:
        """Prepares the text of all prompts, and which of its tokens are whose."""
        text, spans = text_of(self._labels, self._spec.key)
        read = tokenizer(text, return_offsets_mapping=True)
        if len(read.input_ids) > most:
            raise ConfigError(f"model {self._spec.key!r}: its prompts are over {most} tokens: ask for fewer")
        device = self._runtime.device
        self._ids = torch.tensor([read.input_ids], device=device)
        self._tokens = [
            torch.tensor([i for i, (a, b) in enumerate(read.offset_mapping) if start <= a < b <= end], device=device)
            for start, end in spans
        ]

    def _mask(self, part: Sequence[Sheet]) -> torch.Tensor:
        """(N, side, side): 1 where there is a photo, else 0."""
        side = torch.arange(self._spec.input_px, device=self._runtime.device)
        sizes = torch.tensor([s.size_px for s in part], device=self._runtime.device)
        across, down = (side < of_photo[:, None] for of_photo in sizes.unbind(1))
        return (down[:, :, None] & across[:, None, :]).long()

    def _select(self, scores: torch.Tensor, boxes: torch.Tensor) -> Detections:
        """Of one photo: (queries, prompts) scores and (queries, 4) boxes."""
        query, kind = (scores >= self._spec.least_score).nonzero(as_tuple=True)
        labels = tuple(self._labels[i] for i in kind.tolist())
        return Detections(boxes[query].numpy(), scores[query, kind].numpy(), labels)


def sheet(photo: Image.Image, side_px: int) -> Sheet:
    """A photo, its shape kept, in the upper left corner of a square that its longest side fills."""
    gain = side_px / max(photo.size)
    size_px = (max(round(photo.width * gain), 1), max(round(photo.height * gain), 1))
    if photo.size != size_px:
        photo = photo.resize(size_px, Image.Resampling.BILINEAR, reducing_gap=2.0)
    pixels = np.zeros((side_px, side_px, 3), np.uint8)
    pixels[: size_px[1], : size_px[0]] = np.asarray(photo)
    return Sheet(pixels, size_px)


def text_of(prompts: Sequence[str], key: str) -> tuple[str, list[tuple[int, int]]]:
    """All prompts as the model reads them, small letters and a full stop after each, and where each is (start, end).

    Args:
        prompts: what to look for.
        key: of the model, for errors.

    Raises:
        ConfigError: there are none, or one is empty or has a mark within that ends a phrase.
    """
    if not prompts:
        raise ConfigError(f"model {key!r}: its row has no prompts: name what to look for")
    text = ""
    spans = []
    for prompt in prompts:
        phrase = prompt.strip().lower()
        if not phrase or any(end in phrase for end in ENDS):
            raise ConfigError(f"model {key!r}: prompt {prompt!r} must be words without {' or '.join(ENDS)}")
        spans.append((len(text), len(text) + len(phrase)))
        text += f"{phrase}. "
    return text.rstrip(), spans
