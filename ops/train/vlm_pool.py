"""The training pictures of mini-vlm: pool.py's, of the shapes that its processor would give them, made first.

A scout squashes every photo to a square, Qwen's processor keeps its shape. So a picture goes to that one of four shapes
which is nearest to its own.
"""

import math
import mmap
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ops.train.pool import WITHOUT_CLIPS, Material, draw, gather

#: (height, width) in pixels, whole tokens, within vlm_shape.AREA_PX: photos of 16:9, 4:3, 1:1 and 3:4.
SHAPES = ((256, 480), (320, 416), (352, 352), (416, 320))
#: Bytes of the largest.
ROW_BYTES = max(3 * high * wide for high, wide in SHAPES)


@dataclass
class Pictures:
    """``flat`` (N, ROW_BYTES) uint8, the first bytes of a row being RGB of its shape; the other arrays are (N,)."""

    flat: np.ndarray
    shapes: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    groups: np.ndarray
    kinds: np.ndarray


def nearest_shape(width: int, height: int) -> int:
    """Place in SHAPES of the one that a picture of this size is stretched least to."""
    return min(range(len(SHAPES)), key=lambda i: abs(math.log(width / height * SHAPES[i][0] / SHAPES[i][1])))


def fill(row: np.ndarray, image: Image.Image) -> int:
    """Writes a picture into a row, in its shape; gives the place of the shape."""
    place = nearest_shape(*image.size)
    high, wide = SHAPES[place]
    row[: 3 * high * wide] = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)).reshape(-1)
    return place


#: What forked children work on and write to: inherited, never sent.
_shared: list[tuple[Material, int, np.ndarray]] = []


def _make(place: int) -> tuple[int, int, str, str, str]:
    material, first_seed, flat = _shared[0]
    image, *mark = draw(material, WITHOUT_CLIPS, first_seed + place)
    return fill(flat[place], image), *mark


def prepare(folder: Path, count: int, seconds: float, processes: int, first_seed: int) -> Pictures:
    """Makes pictures on all processes until there are ``count`` of them, or the time is over."""
    until = time.monotonic() + seconds
    memory = mmap.mmap(-1, count * ROW_BYTES)  # anonymous, and shared with forked children
    flat = np.frombuffer(memory, dtype=np.uint8).reshape(count, ROW_BYTES)
    _shared[:] = [(gather(folder, {}), first_seed, flat)]
    marks = []
    with multiprocessing.get_context("fork").Pool(processes) as workers:
        for mark in workers.imap(_make, range(count), chunksize=8):
            marks.append(mark)
            # Whole pairs only.
            if len(marks) % 2 == 0 and time.monotonic() > until:
                break
    shapes, labels, sources, groups, kinds = (np.array(column) for column in zip(*marks, strict=True))
    return Pictures(flat[: len(marks)], shapes, labels, sources, groups, kinds)
