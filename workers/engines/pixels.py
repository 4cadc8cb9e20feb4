"""From squares of bytes to a batch of tensors: normalised on the device, since bytes travel faster than floats."""

from collections.abc import Sequence

import numpy as np
import torch

from workers.engines.square import Pixels

#: Of ImageNet, RGB; what most backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def batch(
    squares: Sequence[Pixels], device: str, dtype: torch.dtype, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """(N, 3, side, side) on the device, normalised: (x / 255 - mean) / std for each of R, G, B.

    Bytes travel to the device and not floats: a fourth of the traffic.
    """
    pixels = torch.from_numpy(np.stack(squares)).to(device, non_blocking=True).permute(0, 3, 1, 2)
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, 3, 1, 1)
    return (pixels.float() * scale - shift).to(dtype)
