"""Runs own heads on a DINOv3 backbone: one pass of the backbone serves every head, and every row that shares it.

A DINOv3 backbone has no vote of its own. A row without heads loads it and abstains.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog
import torch
from msgspec import Struct
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, DINOv3ViTModel

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import Runtime, Shot
from workers.engines.pixels import IMAGENET_MEAN, IMAGENET_STD, batch
from workers.engines.square import Pixels, square
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find

log = structlog.get_logger(__name__)

#: The tensors of each head; which of the three a file holds is its own choice.
HEADS = {
    "cls": {"weight", "bias"},
    "mean": {"weight", "bias"},
    "attentive": {"queries", "weight", "bias"},
}


class Square(Struct, frozen=True, gc=False):
    """One photo as the backbone takes it, and its name: by it rows know that they were handed the same photo."""

    pixels: Pixels
    digest: bytes


class Tokens(Struct, frozen=True, gc=False):
    """What the backbone sees in N photos, on the device."""

    #: (N, D): the class token.
    cls: torch.Tensor
    #: (N, P, D): one a patch; the registers are left out.
    patches: torch.Tensor


class Backbone:
    """A DINOv3 on one device. It remembers the tokens of the photos in hand, so that each row need not ask anew."""

    def __init__(self, model: Any, processor: Any, runtime: Runtime, dtype: torch.dtype) -> None:
        self.width: int = model.config.hidden_size
        self.patch_px: int = model.config.patch_size
        self._registers: int = model.config.num_register_tokens
        self._mean = tuple(processor.image_mean or IMAGENET_MEAN)
        self._std = tuple(processor.image_std or IMAGENET_STD)
        self._runtime = runtime
        self._dtype = dtype
        self.model = place(model, dtype, runtime)
        self._in_hand: tuple[bytes, ...] = ()
        self._tokens: Tokens | None = None

    def tokens(self, inputs: Sequence[Square]) -> Tokens:
        """Of a batch that is no larger than agreed.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        names = tuple(one.digest for one in inputs)
        if self._tokens is None or names != self._in_hand:
            # Those of the batch before go first: the memory may be just enough for one.
            self._tokens = None
            with inference():
                pixels = batch([one.pixels for one in inputs], self._runtime.device, self._dtype, self._mean, self._std)
                seen = self.model(pixel_values=pixels).last_hidden_state.float()
            self._tokens = Tokens(seen[:, 0], seen[:, 1 + self._registers :])
            self._in_hand = names
        return self._tokens


#: By folder of the weights, device and precision: rows of one process share a backbone while any of them lives.
_backbones: "WeakValueDictionary[tuple[Path, str, torch.dtype, bool], Backbone]" = WeakValueDictionary()


def backbone(spec: ModelSpec, runtime: Runtime, folder: Path) -> Backbone:
    """The backbone of a folder, loaded once a process.

    Raises:
        ConfigError: its weights cannot be loaded.
    """
    dtype = dtype_of(spec, runtime)
    key = (folder.resolve(), runtime.device, dtype, runtime.compile)
    held = _backbones.get(key)
    if held is None:
        model = pretrained(spec, lambda: DINOv3ViTModel.from_pretrained(folder, local_files_only=True))
        processor = pretrained(spec, lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True))
        held = _backbones[key] = Backbone(model, processor, runtime, dtype)
    return held


class Heads:
    """One to three heads; the score is the mean of their logits.

    ``cls``: linear on the class token. ``mean``: linear on the mean of the patches. ``attentive``: Q learnt queries,
    each of which pools the patches by softmax(patches . query / sqrt(D)); linear on the Q pooled vectors. Source of the
    first two: Oquab et al., DINOv2, 2023; of attentive probing: Bardes et al., V-JEPA, 2024.

    Args:
        weights: by name: cls.weight (D,), cls.bias (1,), mean.weight (D,), mean.bias (1,), attentive.queries (Q, D),
            attentive.weight (Q * D,), attentive.bias (1,).
        width: D, of the backbone.
        device: where the tokens will be.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """

    def __init__(self, weights: dict[str, torch.Tensor], width: int, device: str) -> None:
        self._kinds = sorted({name.partition(".")[0] for name in weights})
        wanted = {f"{kind}.{tensor}" for kind in self._kinds for tensor in HEADS.get(kind, ())}
        if not weights or wanted != set(weights):
            odd = ", ".join(sorted(wanted ^ set(weights))) or "nothing"
            raise ValueError(f"its tensors are not those of cls, mean and attentive heads: {odd}")
        for name, tensor in weights.items():
            queries = weights["attentive.queries"].shape[0] if name.startswith("attentive") else 1
            shape = {"weight": (queries * width,), "bias": (1,), "queries": (queries, width)}[name.partition(".")[2]]
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {shape}")
        self._weights = {name: tensor.to(device, torch.float32) for name, tensor in weights.items()}

    def score(self, tokens: Tokens) -> torch.Tensor:
        """(N,) logits."""
        logits = []
        for kind in self._kinds:
            pooled = {"cls": self._cls, "mean": self._mean, "attentive": self._attentive}[kind](tokens)
            logits.append(pooled @ self._weights[f"{kind}.weight"] + self._weights[f"{kind}.bias"])
        return torch.stack(logits).mean(0)

    def _cls(self, tokens: Tokens) -> torch.Tensor:
        return tokens.cls

    def _mean(self, tokens: Tokens) -> torch.Tensor:
        return tokens.patches.mean(1)

    def _attentive(self, tokens: Tokens) -> torch.Tensor:
        queries = self._weights["attentive.queries"]
        share = (tokens.patches @ queries.T / queries.shape[1] ** 0.5).softmax(1)
        return torch.einsum("npq,npd->nqd", share, tokens.patches).flatten(1)


class Engine:
    """The heads of one row, on a backbone that other rows may share."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._heads: Heads | None = None

    def load(self) -> None:
        """Loads the backbone, unless another row did, and the heads beside its weights (options.heads), if any.

        Raises:
            ConfigError: the weights are missing or no DINOv3's, the input is no whole number of patches, or the heads'
                file is not for this backbone.
        """
        folder = find(self._spec)
        self._backbone = backbone(self._spec, self._runtime, folder)
        if self._spec.input_px % self._backbone.patch_px:
            raise ConfigError(
                f"model {self._spec.key!r}: input_px = {self._spec.input_px} is no multiple of its patches' "
                f"{self._backbone.patch_px} px"
            )
        name = str(self._spec.options.get("heads", ""))
        if not name:
            return
        path = folder / name
        if not path.is_file():
            log.warning("heads.missing", model=self._spec.key, file=str(path), effect="abstains")
            return
        weights = pretrained(self._spec, lambda: load_file(path))
        try:
            self._heads = Heads(weights, self._backbone.width, self._runtime.device)
        except ValueError as error:
            raise ConfigError(f"model {self._spec.key!r}: {path}: {error}") from None

    def warm_up(self) -> None:
        """Scores one full batch of grey; without heads there is nothing to warm."""
        grey = self.prepare(Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127)), Shot())
        if grey is not None:
            self.score([grey] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Square | None:  # noqa: ARG002 - the contract's
        """The photo as a square; None without heads."""
        if self._heads is None:
            return None
        pixels = square(photo, self._spec.input_px)
        return Square(pixels, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest())

    def score(self, inputs: Sequence[Square]) -> list[float | None]:
        """One raw logit a photo, in their order: the mean of the heads'.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        logits: list[float | None] = []
        for part in parts(inputs, self._runtime.max_batch):
            tokens = self._backbone.tokens(part)
            with inference():
                logits += self._heads.score(tokens).cpu().tolist() if self._heads else [None] * len(part)
        return logits
