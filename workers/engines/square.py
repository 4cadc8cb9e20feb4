"""A photo as a square of bytes: what most models take, whatever the library that runs them."""

import numpy as np
import numpy.typing as npt
from PIL import Image

#: One photo as a square: (side_px, side_px, 3), RGB.
Pixels = npt.NDArray[np.uint8]


def square(photo: Image.Image, side_px: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Pixels:
    """An RGB photo as a square, whatever its shape. Training calls this too: one kind of pixel only."""
    if photo.size != (side_px, side_px):
        # reducing_gap: a cheap box shrink first, then the exact one; many times faster on a large photo.
        photo = photo.resize((side_px, side_px), resample, reducing_gap=2.0)
    return np.asarray(photo)
