"""Photos for measuring engines: JPEG, pairwise distinct, as heavy to decode as street photos, quick to make."""

import io
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image

from configs.model import ModelSpec

#: Cells of noise along a side, blown up to the photo: about the bytes a pixel of a street photo at this quality.
_COARSE, _FINE = 12, 96
_QUALITY = 90
#: A model of the night abstains by day: its photos are this dark.
_NIGHT = 0.15


def noise(seed: int, side_px: int, light: float = 1.0) -> Image.Image:
    """One RGB square; another for each seed. ``light``: 1 for a day's, near 0 for a night's."""
    dice = np.random.default_rng(seed)
    coarse, fine = (
        Image.fromarray(dice.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((side_px, side_px))
        for cells in (_COARSE, _FINE)
    )
    return Image.blend(coarse, fine, 0.3).point(lambda value: value * light)


def light_of(spec: ModelSpec) -> float:
    """In which a model looks at photos."""
    return _NIGHT if spec.options.get("night") else 1.0


def jpeg(seed: int, side_px: int, light: float = 1.0) -> bytes:
    """The same, as a JPEG."""
    buffer = io.BytesIO()
    noise(seed, side_px, light).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def jpegs(count: int, side_px: int, light: float = 1.0, first: int = 0) -> Iterator[bytes]:
    """``count`` of them, in order of their seeds from ``first`` on, made on all cores."""
    seeds = range(first, first + count)
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(jpeg, seeds, [side_px] * count, [light] * count, chunksize=32)


def fresh(count: int) -> int:
    """The first of ``count`` seeds that no other run has had, by all odds."""
    return secrets.randbits(40) * count
