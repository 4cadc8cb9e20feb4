"""Depth Anything 3, metric: how far away what a photo shows is, so that boxes of an impossible size lose confidence.

Depth is no evidence of roadwork: there is no vote.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from depth_anything_3.model.dinov2.dinov2 import DinoV2
from depth_anything_3.model.dpt import DPT
from PIL import Image
from safetensors.torch import load_file

from configs.model import ModelSpec
from workers.engines import Runtime, Shot
from workers.engines.pixels import IMAGENET_MEAN, IMAGENET_STD, batch
from workers.engines.square import Pixels
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained
from workers.weights import find

#: Side of a patch: both sides of the input are multiples of it.
PATCH_PX = 14

#: The focal length in pixels at which the model's output is in metres. Source: depth_anything_3.utils.alignment,
#: apply_metric_scaling; the library itself applies it in its nested models only, not in this one.
CANONICAL_FOCAL_PX = 300.0

#: A pixel whose sky output is not below this is sky. Source: depth_anything_3.utils.alignment, compute_sky_mask.
SKY = 0.3


class Sight(NamedTuple):
    """One photo, ready for measuring."""

    #: (h, w, 3), RGB, the photo's shape, both multiples of PATCH_PX.
    pixels: Pixels
    #: Of ``pixels``.
    focal_px: float


class Engine:
    """One depth model on one device."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._dtype = dtype_of(spec, runtime)

    def load(self) -> None:
        """Loads the weights.

        Raises:
            ConfigError: they are missing, or not those of a metric model.
        """
        folder = find(self._spec)
        self._model = place(pretrained(self._spec, lambda: _read(folder)), self._dtype, self._runtime)

    def warm_up(self) -> None:
        """Measures one full batch of grey."""
        side_px = self._spec.input_px
        grey = np.full((side_px // PATCH_PX * PATCH_PX,) * 2 + (3,), 127, np.uint8)
        self.measure([Sight(grey, float(side_px))] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Sight | None:
        """The photo at the model's size, its shape kept; None where the camera is not known: no metres without it."""
        if shot.focal_px <= 0 or 0 in shot.size_px:
            return None
        scale = self._spec.input_px / max(photo.size)
        width, height = (max(1, round(side * scale / PATCH_PX)) * PATCH_PX for side in photo.size)
        # Rounded to patches, the two sides may have shrunk differently: the mean, as the library has it.
        focal_px = shot.focal_px * (width / shot.size_px[0] + height / shot.size_px[1]) / 2
        resized = photo.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return Sight(np.asarray(resized), focal_px)

    def score(self, inputs: Sequence[Any]) -> list[float | None]:
        """None for each: depth has no vote."""
        return [None] * len(inputs)

    def measure(self, inputs: Sequence[Sight]) -> list[npt.NDArray[np.float32]]:
        """The depth of each photo, in metres, over the whole of it: (h, w); inf where there is sky.

        metres = output * focal_px / CANONICAL_FOCAL_PX.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        # Photos of one shape go together: a stretched photo has other depths.
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, sight in enumerate(inputs):
            by_shape.setdefault(sight.pixels.shape, []).append(i)
        found: dict[int, npt.NDArray[np.float32]] = {}
        for alike in by_shape.values():
            for part in parts(alike, self._runtime.max_batch):
                found.update(zip(part, self._depths([inputs[i] for i in part]), strict=True))
        return [found[i] for i in range(len(inputs))]

    def _depths(self, sights: Sequence[Sight]) -> npt.NDArray[np.float32]:
        with inference():
            pixels = batch([s.pixels for s in sights], self._runtime.device, self._dtype, IMAGENET_MEAN, IMAGENET_STD)
            out, sky = self._model(pixels)
            focal_px = torch.tensor([s.focal_px for s in sights], device=self._runtime.device).view(-1, 1, 1)
            metres = out.float() * focal_px / CANONICAL_FOCAL_PX
            depths: npt.NDArray[np.float32] = metres.masked_fill(sky >= SKY, torch.inf).cpu().numpy()
        return depths


class MetricDepth(torch.nn.Module):  # type: ignore[misc] # torch has no types here
    """Backbone and head alone: (N, 3, h, w) to (N, h, w) raw depth and (N, h, w) sky.

    The library's own network gives sky the depth of the farthest thing in the whole batch, so that a photo's depth
    would depend on its neighbours.
    """

    def __init__(self, backbone: DinoV2, head: DPT) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, pixels: Any) -> tuple[Any, Any]:
        """One photo is one scene of one view."""
        features, _ = self.backbone(pixels[:, None])
        out = self.head(features, *pixels.shape[-2:], patch_start_idx=0)
        return out["depth"][:, 0], out["sky"][:, 0]


def _read(folder: Path) -> MetricDepth:
    """The model that a folder holds, as the library's save_pretrained leaves it: config.json, model.safetensors.

    The library builds whatever class config.json names, and evaluates expressions that it finds there; here it gives
    sizes only.
    """
    config = json.loads((folder / "config.json").read_bytes())["config"]
    net, head = ({key: value for key, value in config[part].items() if key != "__object__"} for part in ("net", "head"))
    model = MetricDepth(DinoV2(**net), DPT(**head))
    model.load_state_dict({key.removeprefix("model."): w for key, w in load_file(folder / "model.safetensors").items()})
    return model
