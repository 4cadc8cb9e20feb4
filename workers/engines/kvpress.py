"""Runs a Qwen3-VL through transformers with a press around its language part: the photo's KV cache is cut, then asked.

The photo is read once. Its KV cache is cut by the press, and each question runs on a copy of what is left, at the
positions that it would have had. P is read at the end of the question: a press cuts a layer's cache after that layer's
attention has read it, so the logits of the photo's own pass are the same with and without. It needs an environment of
its own (workers.engines.apart): KVPress does not take the transformers of the other engines.

Options: ``press``, ``compression_ratio`` and ``image_only`` (workers.engines.kvpress_presses), ``questions`` (each a
prompt of configs/prompts, or the question itself), and what the press may be told besides.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from msgspec import Struct
from PIL import Image
from transformers import AutoProcessor, DynamicCache, Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from configs.errors import ConfigError
from configs.model import ModelSpec
from configs.prompt import questions
from workers.engines import Runtime, Shot
from workers.engines.kvpress_presses import Cutter
from workers.engines.torch_device import dtype_of, inference, place, pretrained
from workers.weights import find
from workers.yes_no import NO, YES, Words, read

#: What this engine takes itself; other options are the press'.
OPTIONS = ("press", "compression_ratio", "image_only", "questions")


class Picture(Struct, frozen=True):
    """A photo as the model's processor makes it."""

    #: (patches, channels * patch area) and (1, 3): its size in patches.
    pixels: Any
    grid: Any


class Prefix(Struct, frozen=True):
    """A photo that the model has read."""

    #: By layer, keys and values: (1, KV heads, tokens, head dimension).
    layers: tuple[tuple[Any, Any], ...]
    #: Position of the token that follows it.
    position: int
    #: Tokens in each layer before the press.
    tokens: int

    @property
    def kept(self) -> tuple[int, ...]:
        """Tokens in each layer after the press."""
        return tuple(keys.shape[2] for keys, _ in self.layers)

    @property
    def bytes(self) -> tuple[int, int]:
        """Of keys and values, before and after."""
        after = sum(part.nbytes for layer in self.layers for part in layer)
        return self.tokens * after // sum(self.kept) * len(self.layers), after

    def __str__(self) -> str:
        kept = f"{min(self.kept)} to {max(self.kept)}" if len(set(self.kept)) > 1 else str(self.kept[0])
        before, after = self.bytes
        return f"{self.tokens} -> {kept} tokens a layer, {before:,} -> {after:,} bytes"


class Engine:
    """One Qwen3-VL and one press.

    Raises:
        ConfigError: an option is wrong.
    """

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec, self._runtime = spec, runtime
        options = spec.options
        ratio, image_only = options.get("compression_ratio", 0.5), options.get("image_only")
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            raise ConfigError(f"model {spec.key!r}: compression_ratio is a number, not {ratio!r}")
        if image_only is not None and not isinstance(image_only, bool):
            raise ConfigError(f"model {spec.key!r}: image_only is true or false, not {image_only!r}")
        rest = {name: value for name, value in options.items() if name not in OPTIONS}
        self.cutter = Cutter(spec.key, str(options.get("press", "none")), ratio, image_only, rest)
        try:
            self._questions = questions(options)
        except ConfigError as error:
            raise ConfigError(f"model {spec.key!r}: {error}") from None
        if runtime.compile:
            raise ConfigError(f"model {spec.key!r}: a press hooks into each layer, so it cannot be compiled")
        self._told = 0

    def load(self) -> None:
        """Loads the weights on the device.

        Raises:
            ConfigError: they are missing or no Qwen3-VL's, or its tokenizer has no single token for yes or for no.
        """
        folder = find(self._spec)
        # Hundreds of them would hide what the log is for.
        transformers_logging.disable_progress_bar()
        dtype = dtype_of(self._spec, self._runtime)
        attention = "eager" if self.cutter.wants_weights else "sdpa"
        model = pretrained(
            self._spec,
            lambda: Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation=attention),
        )
        processor = pretrained(self._spec, lambda: AutoProcessor.from_pretrained(folder))
        self.put(place(model, dtype, self._runtime), processor)

    def put(self, model: Any, processor: Any) -> None:
        """Takes a model on its device, and its processor.

        Raises:
            ConfigError: its tokenizer has no single token for yes or for no.
        """
        self._model, self._images, self._tokenizer = model, processor.image_processor, processor.tokenizer
        self.words = Words(*(frozenset(self._single(words)) for words in (YES, NO)))
        if not self.words.yes or not self.words.no:
            raise ConfigError(f"model {self._spec.key!r}: its tokenizer has no single token for yes or for no")
        self._image = model.config.image_token_id
        ids = [self._ids(self._conversation(processor, question)) for question in self._questions]
        place_of_image = ids[0].index(self._image)
        # To the mark behind the photo, which is its last before the question.
        self._head, self._tail = ids[0][:place_of_image], ids[0][place_of_image + 1 : place_of_image + 2]
        self.suffixes = [one[place_of_image + 2 :] for one in ids]

    def warm_up(self) -> None:
        """Scores grey, as many as may come at once."""
        grey = Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127))
        self.score([self.prepare(grey, Shot())] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Picture:  # noqa: ARG002 - the contract's
        """The photo as the model's processor makes it, its longest side shrunk to the row's ``input_px``."""
        side = max(photo.size)
        if side > self._spec.input_px:
            width, height = (max(1, round(length * self._spec.input_px / side)) for length in photo.size)
            photo = photo.resize((width, height), Image.Resampling.BICUBIC)
        made = self._images(images=[photo], return_tensors="pt")
        return Picture(made["pixel_values"], made["image_grid_thw"])

    def score(self, inputs: Sequence[Picture]) -> list[float | None]:
        """Of each photo the mean log-odds of yes against no over the questions; None: too much is said besides.

        Raises:
            DeviceMemoryError: there is no memory for a photo.
        """
        return [self._score(picture) for picture in inputs]

    def _score(self, picture: Picture) -> float | None:
        with inference():
            prefix = self.look(picture)
            answers = self.ask(prefix, self.suffixes)
        # Of the warm-up, and of the first photo after it: whoever starts a worker or checks a model sees it once.
        if self._told <= self._runtime.max_batch:
            if self._told in {0, self._runtime.max_batch}:
                print(f"KV cache, press {self.cutter.name}: {prefix}", file=sys.stderr, flush=True)  # noqa: T201 - a log
            self._told += 1
        scores = []
        for logprobs in answers.cpu():
            reading = read({i: float(logprobs[i]) for i in self.words.all}, self.words, "chosen")
            if reading is None or (reading.outside or 0) > self._runtime.server.max_outside:
                return None
            scores.append(reading.score)
        return sum(scores) / len(scores)

    def look(self, picture: Picture) -> Prefix:
        """Reads a photo, and cuts what it left in the KV cache."""
        device, dtype = self._model.device, self._model.dtype
        grid = picture.grid
        tokens = int(grid.prod()) // self._images.merge_size**2
        ids = torch.tensor([[*self._head, *[self._image] * tokens, *self._tail]], device=device)
        image = ids == self._image
        cache = DynamicCache()
        given = {"pixel_values": picture.pixels.to(device, dtype), "image_grid_thw": grid.to(device)}
        if "mm_token_type_ids" in signature(type(self._model.model).forward).parameters:
            given["mm_token_type_ids"] = image.int()
        # What the photo before left would be taken for this one's.
        self._model.model.rope_deltas = None
        press = self.cutter.on(image[0])
        with self._numbered(ids.shape[1]) if press else nullcontext(), press(self._model) if press else nullcontext():
            self._model.model(input_ids=ids, past_key_values=cache, use_cache=True, **given)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return Prefix(layers, ids.shape[1] + int(self._model.model.rope_deltas.flatten()[0]), ids.shape[1])

    def ask(self, prefix: Prefix, suffixes: Sequence[Sequence[int]]) -> Any:
        """Log-probabilities of the first token of each answer, (questions, vocabulary), float32.

        Args:
            prefix: stays as it is.
            suffixes: token ids from behind the photo to where the answer begins; all of them run as one batch.
        """
        device = self._model.device
        longest = max(map(len, suffixes))
        # What fills up the shorter ones comes after them, where nothing of them can see it.
        ids = torch.tensor([[*one, *[one[-1]] * (longest - len(one))] for one in suffixes], device=device)
        positions = torch.arange(prefix.position, prefix.position + longest, device=device)
        cache = DynamicCache()
        for number, (keys, values) in enumerate(prefix.layers):
            cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), number)
        with self._masked(prefix.kept, longest):
            out = self._model.model(
                input_ids=ids,
                position_ids=positions.expand(3, len(ids), -1),
                past_key_values=cache,
                use_cache=True,
            )
        last = torch.tensor([len(one) - 1 for one in suffixes], device=device)
        hidden = out.last_hidden_state[torch.arange(len(ids), device=device), last]
        return self._model.lm_head(hidden).float().log_softmax(-1)

    @contextmanager
    def _hooked(self, given: Any) -> Iterator[None]:
        """Gives each layer's attention arguments of its own: ``given(layer's number)``."""

        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | given(module.layer_idx)

        layers = self._model.model.language_model.layers
        hooks = [layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()

    def _numbered(self, tokens: int) -> Any:
        """Presses look for where in the cache a pass is; transformers from 5.17 on no longer says it."""
        return self._hooked(lambda _: {"cache_position": torch.arange(tokens, device=self._model.device)})

    def _masked(self, kept: Sequence[int], tokens: int) -> Any:
        """Of the suffix, each token sees all of the prefix and what is before it; a press may cut layers unlike."""
        masks = {}
        for length in set(kept):
            mask = torch.full((tokens, length + tokens), torch.finfo(self._model.dtype).min, device=self._model.device)
            masks[length] = mask.triu(length + 1).to(self._model.dtype)[None, None]
        return self._hooked(lambda layer: {"attention_mask": masks[kept[layer]]})

    def _conversation(self, processor: Any, question: str) -> str:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        text: str = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _single(self, words: Sequence[str]) -> Iterator[int]:
        for word in words:
            ids = self._ids(word)
            if len(ids) == 1:
                yield ids[0]
