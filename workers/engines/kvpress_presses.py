"""KVPress' presses by name: which there are, what each may be told, and one that drops image tokens only.

A press cuts the KV cache of each layer when that layer's attention has read the prompt. Names are those of the
library's classes without "Press". Source: github.com/NVIDIA/kvpress, 0.5.5.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import kvpress  # type: ignore[import-not-found]
import torch
from kvpress import utils as kvpress_utils
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention

from configs.errors import ConfigError

#: Each gives every token a number and keeps the highest.
SCORERS = {
    "cap": "CapPress",
    "compactor": "CompactorPress",
    "cur": "CURPress",
    "expected-attention": "ExpectedAttentionPress",
    "keydiff": "KeyDiffPress",
    "knorm": "KnormPress",
    "lagkv": "LagKVPress",
    "leverage-score": "LeverageScorePress",
    "non-causal-attn": "NonCausalAttnPress",
    "observed-attention": "ObservedAttentionPress",
    "random": "RandomPress",
    "snapkv": "SnapKVPress",
    "streaming-llm": "StreamingLLMPress",
    "tova": "TOVAPress",
}
#: Each cuts in its own way by the numbers of another one, option ``inner``.
AROUND = {
    "block": "BlockPress",
    "chunk": "ChunkPress",
    "chunkkv": "ChunkKVPress",
    "critical-kv": "CriticalKVPress",
    "entropy-gated-chunkkv": "EntropyGatedChunkKVPress",
    "merging": "MergingPress",
}
#: Each cuts in its own way by numbers of its own.
ALONE = {"pyramidkv": "PyramidKVPress"}

_MASKS = "masks tokens head by head and leaves the cache as long as it was"
_HUB = "needs a download from a model hub"
_TURNS = "turns keys to positions of one dimension, where this model has three"
_ANSWER = "cuts while an answer is written, and here it is one token"
_PARTS = "puts other presses together"
#: What the library has besides, and why it is not offered.
LEFT_OUT = {
    "adakv": _MASKS,
    "critical-adakv": _MASKS,
    "dms": _MASKS,
    "kvgrad": _MASKS,
    "kvzip": _MASKS,
    "duo-attention": _HUB,
    "expected-attention-stats": _HUB,
    "fastkvzip": _HUB,
    "kvzap": _HUB,
    "lukv": _HUB,
    "qfilter": _HUB,
    "restorekv": _HUB,
    "finch": _TURNS,
    "key-rerotation": _TURNS,
    "cam": _ANSWER,
    "compression-ratio-decoding": _ANSWER,
    "decoding": _ANSWER,
    "prefill-decoding": _ANSWER,
    "composed": _PARTS,
    "per-layer-compression": _PARTS,
    "kvcompose": "reads the configuration of a text model, which this one is not",
    "simlayerkv": "leaves prompts of up to 1,029 tokens as they are",
    "think": "drops channels of the keys, not tokens, and leaves them in memory as zeros",
}
OFFERED = SCORERS | AROUND | ALONE

#: What a press around another one asks unless told otherwise.
INNER = "knorm"
#: They read attention weights, which only the plain implementation of attention gives.
WANT_WEIGHTS = frozenset({"observed-attention"})
#: They cut by the numbers alone, so that tokens with the highest numbers stay.
_KEEPS_THE_HIGHEST = frozenset({*SCORERS, "critical-kv", "merging"})


class _AfterTheText:
    """The next text comes after the photo's place, not after its tokens.

    M-RoPE counts a photo as its longer side in tokens, so that the text behind it begins sooner than the library, which
    counts tokens, believes. Source: S. Bai and others, Qwen2.5-VL Technical Report, 2025, 2.1.2.
    """

    def post_init_from_model(self, model: Any) -> None:
        self._model = model

    def _begin(self, tokens: int) -> int:
        return tokens + int(self._model.model.rope_deltas.flatten()[0])


class _ExpectedAttention(_AfterTheText, kvpress.ExpectedAttentionPress):  # type: ignore[misc] # the library has no types here
    def apply_avg_rope(self, module: Any, mu: Any, cov: Any, q_len: int) -> Any:
        return super().apply_avg_rope(module, mu, cov, self._begin(q_len))


class _Cap(_AfterTheText, kvpress.CapPress):  # type: ignore[misc] # as above
    def _avg_rope_matrix(self, module: Any, q_len: int, **rest: Any) -> Any:
        return super()._avg_rope_matrix(module, self._begin(q_len), **rest)


@dataclass
class ImageOnly(kvpress.ScorerPress):  # type: ignore[misc] # as above
    """The numbers of another press, and for what is no image token the highest of all."""

    inner: Any = None
    #: (tokens,) of the prompt to come: whether it is the image's.
    image: Any = None

    def post_init_from_model(self, model: Any) -> None:
        """Tells the other press."""
        self.inner.post_init_from_model(model)

    def score(self, *args: Any) -> Any:
        """(batch, KV heads, tokens): higher stays longer."""
        scores = self.inner.score(*args)
        return scores.masked_fill(~self.image.to(scores.device), float("inf"))


class Cutter:
    """One press with its arguments.

    Args:
        key: of the model, for what is wrong.
        name: of the press; "" or "none": nothing is cut.
        ratio: share that is removed, of the image tokens or of all, 0 to 1.
        image_only: None: where the press can.
        arguments: of the press, and ``inner``.

    Raises:
        ConfigError: there is no such press, it cannot keep the text, or it has no such argument.
    """

    def __init__(
        self, key: str, name: str, ratio: float, image_only: bool | None, arguments: Mapping[str, Any]
    ) -> None:
        self.name = name or "none"
        if not 0 <= ratio < 1:
            raise ConfigError(
                f"model {key!r}: compression_ratio is the share removed, from 0 to below 1, not {ratio:g}"
            )
        if self.name != "none":
            _require_offered(key, self.name, OFFERED)
        can = self.name in _KEEPS_THE_HIGHEST
        if image_only and not can and self.name != "none":
            raise ConfigError(
                f"model {key!r}: press {name!r} does not cut token by token and so cannot keep the text: "
                f"image_only = false, or one of {', '.join(sorted(_KEEPS_THE_HIGHEST))}"
            )
        self.image_only = can if image_only is None else image_only
        self._ratio = ratio if self.name != "none" else 0.0
        rest = dict(arguments)
        inner = str(rest.pop("inner", INNER)) if self.name in AROUND else ""
        if inner:
            _require_offered(key, inner, SCORERS)
        self.wants_weights = bool({self.name, inner} & WANT_WEIGHTS)
        self._inner, self._press = inner, None
        if self._ratio:
            self._press = self._build(key, rest)
        elif rest:
            raise ConfigError(f"model {key!r}: nothing is cut, so nobody reads option {', '.join(rest)}")

    def _build(self, key: str, rest: dict[str, Any]) -> Any:
        outer = _class(self.name)
        known = _arguments(outer) | (_arguments(_class(self._inner)) if self._inner else set())
        if strange := set(rest) - known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise ConfigError(
                f"model {key!r}: press {self.name!r} has no argument {', '.join(sorted(strange))}; {takes}"
            )
        try:
            scorer = _with(_class(self._inner or self.name), rest)
            if self.name == "merging":
                return _with(outer, rest, press=ImageOnly(inner=scorer) if self.image_only else scorer)
            press = _with(outer, rest, **({"press": scorer} if self._inner else {}))
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"model {key!r}: press {self.name!r}: {error}") from None
        return ImageOnly(inner=press) if self.image_only else press

    def least_tokens(self) -> int:
        """A prompt must be longer for the press to work: it keeps the first and reads with the last."""
        press, least = self._press, 1
        while press is not None:
            least = max(least, getattr(press, "n_sink", 0) + 1, getattr(press, "window_size", 0) + 1)
            press = getattr(press, "inner", None) or getattr(press, "press", None)
        return least

    def on(self, image: torch.Tensor) -> Any | None:
        """The press for one prompt, a context around the model; None: nothing is cut.

        Args:
            image: (tokens,), whether it is the image's.
        """
        press, tokens, ratio = self._press, len(image), self._ratio
        if press is None or tokens <= self.least_tokens():
            return None
        if self.image_only:
            dropped = int(ratio * int(image.sum()))
            if not dropped:
                return None
            # Half a token: what is kept is rounded down, and must not fall below the text.
            ratio = (dropped - 0.5) / tokens
            keeper = press.press if self.name == "merging" else press
            keeper.image, keeper.inner.compression_ratio = image, ratio
        press.compression_ratio = ratio
        return press


def _require_offered(key: str, name: str, offered: Mapping[str, str]) -> None:
    if name in offered:
        return
    why = f"is not offered: it {LEFT_OUT[name]}" if name in LEFT_OUT else "is none"
    if name in OFFERED:
        why = "gives no numbers to another one"
    raise ConfigError(f"model {key!r}: press {name!r} {why}; there are {', '.join(sorted(offered))}")


def _class(name: str) -> Any:
    mended = {"expected-attention": _ExpectedAttention, "cap": _Cap}
    return mended.get(name) or getattr(kvpress, OFFERED[name])


def _arguments(kind: Any) -> set[str]:
    """What a press may be told, but for what this file tells it."""
    return {name for name in signature(kind).parameters if not name.startswith("_")} - {"press", "compression_ratio"}


def _with(kind: Any, arguments: Mapping[str, Any], **more: Any) -> Any:
    return kind(**{name: value for name, value in arguments.items() if name in _arguments(kind)}, **more)


def _mend() -> None:
    """Makes the library read this model's queries and keys as the model does.

    It normalises them for the classes that it names, and Qwen3-VL's, which has the same two norms, is not among them:
    presses that work out attention anew would do so from other queries than the model's.
    """
    kvpress_utils.Qwen3Attention = (kvpress_utils.Qwen3Attention, Qwen3VLTextAttention)
    # It warns once a photo that nobody tested this class.
    logging.getLogger("kvpress.presses.base_press").setLevel(logging.ERROR)


_mend()
