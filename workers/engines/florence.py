"""Runs Florence-2 as a detector: asked for a phrase, it writes where it is, in words that are places.

Its boxes have no scores. What it has is how sure it was of each word as it wrote it, and that is weak: it was trained
on phrases that are there, so it mostly writes a box, often one around the whole photo, also for what is not. Nobody
calibrated it here; its row has weight 0, which records its word and moves nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.detections import NOTHING, Detections, Detector
from workers.engines import Runtime, Shot
from workers.engines.pixels import batch
from workers.engines.square import Pixels, square
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find

#: What is asked of the model with each phrase, in its own word.
TASK = "<OPEN_VOCABULARY_DETECTION>"

#: Places along one side of a photo, <loc_0> to <loc_999>. Source: B. Xiao and others, Florence-2, 2023, 3.1.
BINS = 1000

#: Words of an answer, where the row has no option ``new_tokens``: a phrase and eight boxes or so.
NEW_TOKENS = 40


class Engine(Detector):
    """Florence-2 on one device, asked for each prompt of the row in turn."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        super().__init__(spec.prompts)
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)
        self._labels = tuple(spec.prompts)
        new_tokens = spec.options.get("new_tokens", NEW_TOKENS)
        if not isinstance(new_tokens, int) or new_tokens < 8:
            raise ConfigError(f"model {spec.key!r}: new_tokens = {new_tokens!r} must be a number of words, 8 or more")
        self._new_tokens = new_tokens

    def load(self) -> None:
        """Loads the weights and reads the prompts.

        Raises:
            ConfigError: the weights are missing or not of Florence-2, or there is no prompt.
        """
        if not self._labels:
            raise ConfigError(f"model {self._spec.key!r}: its row has no prompts: name what to look for")
        path = find(self._spec)
        model = pretrained(
            self._spec, lambda: Florence2ForConditionalGeneration.from_pretrained(path, local_files_only=True)
        )
        processor = pretrained(self._spec, lambda: AutoProcessor.from_pretrained(path, local_files_only=True))
        images = processor.image_processor
        side_px = images.size["height"]
        if side_px != self._spec.input_px:
            raise ConfigError(
                f"model {self._spec.key!r}: {path} takes {side_px} px, not input_px = {self._spec.input_px}"
            )
        self._mean, self._std = tuple(images.image_mean), tuple(images.image_std)
        self._resample = Image.Resampling(images.resample)
        self._read(processor)
        # generate() is a loop of Python around a cache that grows; what can be compiled is what looks at the photo.
        model.model.vision_tower = place(model.model.vision_tower, self._dtype, self._runtime)
        self._model = place(model, self._dtype, msgspec.structs.replace(self._runtime, compile=False))

    def warm_up(self) -> None:
        """Scores one full batch of grey."""
        grey = Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127))
        self.score([self.prepare(grey, Shot())] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Pixels:  # noqa: ARG002 - the contract's
        """The photo as a square, stretched, as the library's own processor makes it."""
        return square(photo, self._spec.input_px, self._resample)

    def detect(self, inputs: Sequence[Pixels]) -> list[Detections]:
        """The boxes of every prompt, each with the prompt as its label.

        A box's score is the geometric mean of the probabilities of its four places, each given all that was written
        before: exp((ln p1 + ln p2 + ln p3 + ln p4) / 4). A neighbouring place would do as well, and takes its share of
        the probability: even a sure box is far from 1.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        found: list[Detections] = []
        many = len(self._labels)
        for part in parts(inputs, self._runtime.max_batch):
            with inference():
                pixels = batch(part, self._runtime.device, self._dtype, self._mean, self._std)
                views = self._model.get_image_features(pixels).pooler_output
                pairs = [(photo, prompt) for photo in range(len(part)) for prompt in range(many)]
                seen = [one for some in parts(pairs, self._runtime.max_batch) for one in self._ask(views, some)]
            found += [together(seen[start : start + many]) for start in range(0, len(seen), many)]
        return found

    def _ask(self, views: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> list[Detections]:
        """The boxes of pairs, each of a photo and a prompt by place."""
        photo, prompt = torch.tensor(pairs, device=self._runtime.device).unbind(1)
        ids, mask = self._ids[prompt], self._mask[prompt]
        words = self._model.get_input_embeddings()(ids)
        words = words.masked_scatter((ids == self._image)[..., None], views[photo].to(words.dtype))
        out: Any = self._model.generate(
            # One look at a photo serves all of its prompts.
            encoder_outputs=self._model.get_encoder()(inputs_embeds=words, attention_mask=mask),
            attention_mask=mask,
            max_new_tokens=self._new_tokens,
            # The checkpoint's own is three beams; of one alone every word has a plain probability.
            num_beams=1,
            early_stopping=False,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        written = out.sequences[:, -len(out.logits) :]
        logs = torch.stack(
            [
                logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
                for logits, chosen in zip(out.logits, written.unbind(1), strict=True)
            ],
            1,
        )
        answers = zip(written.tolist(), logs.tolist(), pairs, strict=True)
        return [self._select(tokens, log, self._labels[prompt]) for tokens, log, (_, prompt) in answers]

    def _read(self, processor: Any) -> None:
        """Prepares the question of each prompt, and learns which words are places and which are marks."""
        size_px = (self._spec.input_px,) * 2
        grey = [Image.new("RGB", size_px, (127, 127, 127)) for _ in self._labels]
        asked = [TASK + label for label in self._labels]
        read = processor(images=grey, text=asked, padding="longest", return_tensors="pt")
        self._ids = read.input_ids.to(self._runtime.device)
        self._mask = read.attention_mask.to(self._runtime.device)
        self._image = processor.image_token_id
        tokenizer = processor.tokenizer
        places = tokenizer.convert_tokens_to_ids([f"<loc_{i}>" for i in range(BINS)])
        if len({i for i in places if i != tokenizer.unk_token_id}) != BINS:
            raise ConfigError(f"model {self._spec.key!r}: its words have not the {BINS} places of Florence-2")
        self._places = {token: place for place, token in enumerate(places)}
        self._marks = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)

    def _select(self, tokens: Sequence[int], logs: Sequence[float], label: str) -> Detections:
        read = boxes_of(tokens, logs, self._places, self._marks)
        kept = [(box, score) for box, score in read if score >= self._spec.least_score]
        if not kept:
            return NOTHING
        boxes, scores = zip(*kept, strict=True)
        return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), (label,) * len(kept))


def boxes_of(
    tokens: Sequence[int], logs: Sequence[float], places: dict[int, int], marks: frozenset[int]
) -> list[tuple[tuple[float, ...], float]]:
    """The boxes of one answer: after the words that name a thing, four places a box; left, top, right, bottom.

    Places after no words, less than four, or such that left is not left of right, are no box.

    Args:
        tokens: of the answer, in order.
        logs: the natural logarithm of each one's probability.
        places: token -> place, 0 to BINS - 1.
        marks: tokens that are no words: start, end, padding, those of other tasks; they may hold the places too.

    Returns:
        Of each box its corners, in shares of the photo, the middle of each place; and its score.
    """
    found: list[tuple[tuple[float, ...], float]] = []
    named = False
    read: list[tuple[float, float]] = []
    for token, log in zip(tokens, logs, strict=True):
        if token not in places:
            named = token not in marks
            read = []
        elif named:
            read.append(((places[token] + 0.5) / BINS, log))
        if len(read) == 4:
            box = tuple(share for share, _ in read)
            if box[0] < box[2] and box[1] < box[3]:
                found.append((box, math.exp(sum(log for _, log in read) / 4)))
            read = []
    return found


def together(seen: Sequence[Detections]) -> Detections:
    """What was seen of all prompts in one photo."""
    return Detections(
        np.concatenate([one.boxes for one in seen]),
        np.concatenate([one.scores for one in seen]),
        tuple(label for one in seen for label in one.labels),
    )
