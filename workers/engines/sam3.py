"""Runs SAM 3 as a detector of noun phrases: which of them are in the photo, and where."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from PIL import Image
from transformers import Sam3Model, Sam3Processor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3MaskDecoderOutput, Sam3VisionEncoderOutput

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.detections import Detections, Detector, Floats, noisy_or
from workers.engines import Runtime, Shot
from workers.engines.pixels import batch
from workers.engines.square import Pixels, square
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find

#: Tokens of a phrase, its start and end among them: the text encoder has positions for no more.
MAX_TOKENS = 32

WHOLE_PHOTO = (0.0, 0.0, 1.0, 1.0)


class Phrases(Struct, frozen=True):
    """Noun phrases as the detector takes them, on the device."""

    #: (N, 32, channels).
    features: torch.Tensor
    #: (N, 32): 1 where there is a token, 0 where there is padding.
    mask: torch.Tensor


class Views(Struct, frozen=True):
    """Photos as the detector takes them, on the device."""

    #: (N, channels, side, side).
    features: torch.Tensor
    #: (1, channels, side, side): the same for all photos.
    position: torch.Tensor


class Sight(Struct, frozen=True):
    """What was seen of one phrase in one photo."""

    #: 0 to 1, as the model says: it is somewhere in the photo.
    presence: float
    #: (N, 4), as in Detections.
    boxes: Floats
    #: (N,): of each box, never above ``presence``.
    scores: Floats


class Sam3:
    """The model: vision features once a photo, text features once a phrase, the detector once for each pair."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)

    def load(self) -> None:
        """Loads the weights.

        Raises:
            ConfigError: they are missing or not of SAM 3.
        """
        path = find(self._spec)
        model = pretrained(self._spec, lambda: Sam3Model.from_pretrained(path, local_files_only=True))
        processor = pretrained(self._spec, lambda: Sam3Processor.from_pretrained(path, local_files_only=True))
        self._tokenizer = processor.tokenizer
        self._mean = tuple(processor.image_processor.image_mean)
        self._std = tuple(processor.image_processor.image_std)
        side_px = model.config.image_size
        if side_px != self._spec.input_px:
            raise ConfigError(
                f"model {self._spec.key!r}: {path} takes {side_px} px, not input_px = {self._spec.input_px}"
            )
        model.mask_decoder = _NoMasks()
        # Two entrances, so each is compiled by itself: the features of a photo serve all of its phrases.
        self._vision = place(model.vision_encoder, self._dtype, self._runtime)
        self._text = model.get_text_features
        self._detector = place(model, self._dtype, self._runtime)

    def read(self, phrases: Sequence[str]) -> Phrases:
        """The features of phrases.

        Raises:
            ConfigError: one is longer than the model can read.
            DeviceMemoryError: there is no memory for so many at once.
        """
        tokens = self._tokenizer(list(phrases), padding="max_length", max_length=MAX_TOKENS)
        for phrase, ids in zip(phrases, tokens.input_ids, strict=True):
            if len(ids) > MAX_TOKENS:
                raise ConfigError(f"model {self._spec.key!r}: {phrase!r} has over {MAX_TOKENS} tokens: shorten it")
        ids = torch.tensor(tokens.input_ids, device=self._runtime.device)
        mask = torch.tensor(tokens.attention_mask, device=self._runtime.device)
        some = self._runtime.max_batch
        with inference():
            features = [
                self._text(input_ids=i, attention_mask=m, return_dict=True).pooler_output
                for i, m in zip(ids.split(some), mask.split(some), strict=True)
            ]
            return Phrases(torch.cat(features), mask)

    def view(self, photos: Sequence[Pixels]) -> Views:
        """The features of at most ``max_batch`` photos.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        with inference():
            seen = self._vision(batch(photos, self._runtime.device, self._dtype, self._mean, self._std))
            # The detector reads one level of the pyramid; the finer ones are for masks, the coarsest is never read.
            return Views(seen.fpn_hidden_states[-2], seen.fpn_position_encoding[-2][:1])

    def look(self, views: Views, phrases: Phrases, pairs: Sequence[tuple[int, int]]) -> list[Sight]:
        """What is seen of phrases in photos; boxes below the row's least score are left out.

        Args:
            views: as view() gave them.
            phrases: as read() gave them.
            pairs: each a photo of ``views`` and a phrase of ``phrases``, by place.

        Returns:
            One for each pair, in their order.

        Raises:
            DeviceMemoryError: there is no memory for ``max_batch`` pairs at once.
        """
        sights: list[Sight] = []
        for part in parts(pairs, self._runtime.max_batch):
            photo, phrase = torch.tensor(part, device=self._runtime.device).unbind(1)
            with inference():
                level = views.features[photo]
                position = views.position.expand(len(part), -1, -1, -1)
                out: Any = self._detector(
                    # The last of a pyramid is dropped by the detector, whatever it is.
                    vision_embeds=Sam3VisionEncoderOutput(
                        fpn_hidden_states=(level, level), fpn_position_encoding=(position, position)
                    ),
                    text_embeds=BaseModelOutputWithPooling(pooler_output=phrases.features[phrase]),
                    attention_mask=phrases.mask[phrase],
                )
                presence = out.presence_logits.float().sigmoid().view(-1)
                scores = (out.pred_logits.float().sigmoid() * presence[:, None]).cpu()
                boxes = out.pred_boxes.float().clamp(0, 1).cpu()
            for one, of_boxes, corners in zip(presence.tolist(), scores, boxes, strict=True):
                kept = of_boxes >= self._spec.least_score
                sights.append(Sight(one, corners[kept].numpy(), of_boxes[kept].numpy()))
        return sights


class Engine(Detector):
    """SAM 3, asked for the row's prompts."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        super().__init__(spec.prompts)
        self._spec = spec
        self._runtime = runtime
        self._sam = Sam3(spec, runtime)
        self._labels = tuple(spec.prompts)

    def load(self) -> None:
        """Loads the weights and reads the prompts.

        Raises:
            ConfigError: the weights are missing or not of SAM 3, or there is no prompt, or one is too long.
        """
        if not self._labels:
            raise ConfigError(f"model {self._spec.key!r}: its row has no prompts: name what to look for")
        self._sam.load()
        self._phrases = self._sam.read(self._labels)

    def warm_up(self) -> None:
        """Scores one full batch of grey."""
        grey = Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127))
        self.score([self.prepare(grey, Shot())] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Pixels:  # noqa: ARG002 - the contract's
        """The photo as a square, stretched, as the library's own processor makes it."""
        return square(photo, self._spec.input_px)

    def detect(self, inputs: Sequence[Pixels]) -> list[Detections]:
        """The boxes of every prompt, each with the prompt as its label; and the photo's own raw logit.

        That one is the noisy-or of weight * presence over the prompts, not of the boxes. The model has a token of its
        own for "it is in the photo", trained apart from the boxes, and a hundred weak boxes do not add up in it.
        Source: N. Carion and others, SAM 3: Segment Anything with Concepts, 2025 (presence).

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        return [
            replace(boxes_of(sights, self._labels), logit=presence_of(sights, self._labels, self.weights))
            for sights in self._sights(inputs)
        ]

    def _sights(self, inputs: Sequence[Pixels]) -> list[list[Sight]]:
        """Of each photo, one for each prompt."""
        found: list[list[Sight]] = []
        many = len(self._labels)
        for part in parts(inputs, self._runtime.max_batch):
            pairs = [(photo, phrase) for photo in range(len(part)) for phrase in range(many)]
            sights = self._sam.look(self._sam.view(part), self._phrases, pairs)
            found += [sights[start : start + many] for start in range(0, len(sights), many)]
        return found


def boxes_of(sights: Sequence[Sight], labels: Sequence[str]) -> Detections:
    """The boxes of one photo's sights, one for each label, as one."""
    return Detections(
        np.concatenate([sight.boxes for sight in sights]),
        np.concatenate([sight.scores for sight in sights]),
        tuple(label for sight, label in zip(sights, labels, strict=True) for _ in sight.scores),
    )


def presence_of(sights: Sequence[Sight], labels: Sequence[str], weights: dict[str, float]) -> float:
    """One raw logit a photo: the noisy-or of weight * presence over its sights, one for each label."""
    whole = np.array([WHOLE_PHOTO] * len(labels), np.float32)
    presence = np.array([sight.presence for sight in sights], np.float32)
    return noisy_or(Detections(whole, presence, tuple(labels)), weights)


class _NoMasks(torch.nn.Module):  # type: ignore[misc] # torch has no types here
    """In the place of the mask decoder: nobody reads masks, and 200 of 288 x 288 are 33 MB a pair in half precision."""

    def forward(self, **_: Any) -> Sam3MaskDecoderOutput:
        return Sam3MaskDecoderOutput()
