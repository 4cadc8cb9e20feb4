"""AnomalyCLIP: whether a photo shows something damaged rather than whole, by prompts that were learnt for any object.

They were learnt on factory defects (MVTec AD, VisA): a weak word on roadwork, so its row has weight 0 until a
calibrator was fitted. The library is on no package index: a clone of github.com/zqhang/AnomalyCLIP is used, which an
environment variable names. Of the weights two files are wanted: OpenAI's CLIP ViT-L/14 at 336 px, and the learnt
prompts, which the clone has in checkpoints/9_12_4_multiscale.
"""

import io
import os
import sys
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import Runtime, Shot
from workers.engines.pixels import batch
from workers.engines.square import Pixels, square
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find

#: Folder of the clone.
CHECKOUT_VARIABLE = "NATIX_FLEET_ANOMALYCLIP"

CLIP_FILE = "ViT-L-14-336px.pt"
PROMPTS_FILE = "epoch_15.pth"

#: How the published prompts were learnt. Source: test_one_example.py, the defaults of n_ctx, depth and t_n_ctx; the
#: second key is misspelt there.
DESIGN = {"Prompt_length": 12, "learnabel_text_embedding_depth": 9, "learnabel_text_embedding_length": 4}

#: Blocks of the image encoder, counted from its end, whose attention is replaced. Source: the same, DPAM_layer.
REPLACED_BLOCKS = 20

#: Of the softmax over "whole" and "damaged". Source: the same.
TEMPERATURE = 0.07

#: Of CLIP, RGB. Source: OpenAI, CLIP, clip/clip.py.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Engine:
    """One model on one device."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)

    def load(self) -> None:
        """Loads the weights.

        Raises:
            ConfigError: there is no clone, it needs a library, or a file of the weights is missing or another's.
        """
        build_model, learner = _library(self._spec)
        folder = find(self._spec)
        side_px = self._spec.input_px
        # It prints the shapes of all it builds.
        with redirect_stdout(io.StringIO()):
            model = pretrained(self._spec, lambda: _read(folder, build_model, learner, side_px))
        # Its layer norms are always fed float32: half precision is autocast's.
        self._model = place(model, torch.float32, self._runtime)

    def warm_up(self) -> None:
        """Scores one full batch of grey."""
        grey = np.full((self._spec.input_px,) * 2 + (3,), 127, np.uint8)
        self.score([grey] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Pixels:  # noqa: ARG002 - the contract's
        """The photo as a square."""
        return square(photo, self._spec.input_px, Image.Resampling.BICUBIC)

    def score(self, inputs: Sequence[Pixels]) -> list[float | None]:
        """The log-odds of P(damaged) for each photo.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        scores: list[float | None] = []
        half = torch.autocast(
            torch.device(self._runtime.device).type, self._dtype, enabled=self._dtype != torch.float32
        )
        for part in parts(inputs, self._runtime.max_batch):
            with inference(), half:
                pixels = batch(part, self._runtime.device, torch.float32, CLIP_MEAN, CLIP_STD)
                scores += self._model(pixels).float().cpu().tolist()
        return scores


class Anomaly(torch.nn.Module):  # type: ignore[misc] # torch has no types here
    """(N, 3, side, side) to (N,) log-odds.

    Args:
        clip: the image encoder's model.
        words: (2, D) unit vectors, of the learnt prompts for "whole" and "damaged".
    """

    def __init__(self, clip: Any, words: Any) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("words", words)

    def forward(self, pixels: Any) -> Any:
        """The log-odds of a softmax of two are the difference of its inputs."""
        seen, _ = self.clip.encode_image(pixels, [], DPAM_layer=REPLACED_BLOCKS)
        whole, damaged = (torch.nn.functional.normalize(seen.float(), dim=-1) @ self.words.float().T).unbind(-1)
        return (damaged - whole) / TEMPERATURE


def _read(folder: Path, build_model: Any, learner: Any, side_px: int) -> Anomaly:
    clip = build_model("", state_of(folder / CLIP_FILE), DESIGN).float()
    prompts = learner(clip, DESIGN)
    prompts.load_state_dict(state_of(folder / PROMPTS_FILE)["prompt_learner"])
    clip.visual.DAPM_replace(DPAM_layer=REPLACED_BLOCKS)
    with torch.no_grad():
        text = clip.encode_text_learn(*prompts(cls_id=None)).float()
        # It resizes its embedding of positions in place when it first sees a photo, which inference mode would refuse.
        clip.encode_image(torch.zeros(1, 3, side_px, side_px), [], DPAM_layer=REPLACED_BLOCKS)
    return Anomaly(clip, torch.nn.functional.normalize(text, dim=-1))


def state_of(path: Path) -> Any:
    """The weights in a file: OpenAI published CLIP as TorchScript, others save a plain dictionary.

    Raises:
        OSError, RuntimeError, zipfile.BadZipFile: it is missing, or neither.
    """
    with zipfile.ZipFile(path) as archive:
        script = any(name.endswith("/constants.pkl") for name in archive.namelist())
    if script:
        return torch.jit.load(path, map_location="cpu").state_dict()
    return torch.load(path, map_location="cpu", weights_only=True)


def _library(spec: ModelSpec) -> tuple[Any, Any]:
    """Of the clone: the function build_model and the class AnomalyCLIP_PromptLearner."""
    clone = os.environ.get(CHECKOUT_VARIABLE)
    if not clone or not (Path(clone) / "prompt_ensemble.py").is_file():
        raise ConfigError(
            f"model {spec.key!r}: no package index has its library: clone github.com/zqhang/AnomalyCLIP and set"
            f" {CHECKOUT_VARIABLE} to that folder"
        )
    if clone not in sys.path:
        # Last, since its modules have names such as utils and dataset.
        sys.path.append(clone)
    try:
        learner = import_module("prompt_ensemble").AnomalyCLIP_PromptLearner
        return import_module("AnomalyCLIP_lib.build_model").build_model, learner
    except ImportError as error:
        raise ConfigError(
            f"model {spec.key!r}: {clone}: its library needs {error.name or error}:"
            " pip install ftfy regex thop 'setuptools<81'"
        ) from None
