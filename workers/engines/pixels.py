"""From photos to a batch of tensors: squares of bytes, made in the threads that decode; normalised on the device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

#: One photo as a square: (side_px, side_px, 3), RGB.
Pixels = npt.NDArray[np.uint8]

#: Of ImageNet, RGB; what most backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def square(photo: Image.Image, side_px: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Pixels:
    """An RGB photo as a square, whatever its shape."""
    if photo.size != (side_px, side_px):
        # reducing_gap: a cheap box shrink first, then the exact one; many times faster on a large photo.
        photo = photo.resize((side_px, side_px), resample, reducing_gap=2.0)
    return np.asarray(photo)


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
