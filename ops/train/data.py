"""The photos of a roadwork folder (images/ and manifest.csv), checked, with what may be done with each.

The folder's rule: rows with use=train may train, rows with use=evaluate may only be tested on. ``load`` asks for one of
the two, so no caller can mix them by accident. Photos of one group (frames of one clip, pictures of one road) are near
copies: whoever splits, splits by group.
"""

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

#: Sources whose rows may train, each held out once by the folds of train.py.
TRAINING_SOURCES = ("roadwork-clips", "brazil-dnit", "indian-obstacles")

Use = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Photo:
    """One labelled photo, decoded."""

    file: str
    source: str
    group: str
    label: int
    sha256: str
    image: Image.Image = field(repr=False, compare=False)


def rows(folder: Path, use: Use) -> Iterator[dict[str, str]]:
    """The manifest's rows of one use."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        yield from (row for row in csv.DictReader(lines) if row["use"] == use)


def verify(folder: Path, use: Use) -> list[str]:
    """The sha256 of each photo of one use, in the manifest's order, after checking it against the file.

    Raises:
        ValueError: a file is not what the manifest says.
    """
    digests = []
    for row in rows(folder, use):
        digest = hashlib.sha256((folder / "images" / row["file"]).read_bytes()).hexdigest()
        if digest != row["sha256"]:
            raise ValueError(f"{row['file']}: sha256 {digest}, the manifest says {row['sha256']}")
        digests.append(digest)
    return digests


def load(folder: Path, use: Use, short_side_px: int | None = None) -> list[Photo]:
    """Every photo of one use as RGB; with ``short_side_px`` those that are larger are shrunk to it."""
    photos = []
    for row in rows(folder, use):
        image = Image.open(io.BytesIO((folder / "images" / row["file"]).read_bytes())).convert("RGB")
        if short_side_px and min(image.size) > short_side_px:
            share = short_side_px / min(image.size)
            image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)
        source = row["file"].rsplit("-", 1)[0]
        photos.append(Photo(row["file"], source, row["group"], int(row["label"]), row["sha256"], image))
    return photos


class HotMap:
    """Where a photo has the colours of roadwork (orange, red, fluorescent yellow), as sums over any rectangle.

    It serves one purpose: the clips hold almost no photo without roadwork, so negatives of their style must be cut from
    places where nothing has such a colour, and positives from places that keep most of it.
    """

    CELL_PX = 2

    def __init__(self, image: Image.Image, *, wary: bool = False) -> None:
        """``wary`` also counts pale and dark shades: for what must hold no roadwork at all."""
        small = image.resize((image.width // self.CELL_PX, image.height // self.CELL_PX), Image.Resampling.BOX)
        hue, saturation, value = (np.asarray(band).astype(int) for band in small.convert("HSV").split())
        orange = (
            ((hue <= 20) | (hue >= 247)) & (saturation >= (105 if wary else 140)) & (value >= (95 if wary else 105))
        )
        vest = (hue >= 30) & (hue <= 62) & (saturation >= (120 if wary else 160)) & (value >= (140 if wary else 180))
        hot = orange | vest
        self.size = hot.shape[1], hot.shape[0]
        self.sums = np.pad(hot.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def cells(self, box: tuple[float, float, float, float]) -> tuple[int, int]:
        """(hot cells, all cells) of a box (left, top, right, bottom) in shares of the photo."""
        wide, high = self.size
        x0, x1 = (min(wide, max(0, round(v * wide))) for v in (box[0], box[2]))
        y0, y1 = (min(high, max(0, round(v * high))) for v in (box[1], box[3]))
        s = self.sums
        return int(s[y1, x1] - s[y0, x1] - s[y1, x0] + s[y0, x0]), max(1, (x1 - x0) * (y1 - y0))


def random_box(rng: Random, least: float = 0.4, *, whole: float = 0.25) -> tuple[float, float, float, float]:
    """A random crop (left, top, right, bottom) in shares; the whole photo with probability ``whole``."""
    if rng.random() < whole:
        return 0.0, 0.0, 1.0, 1.0
    wide, high = rng.uniform(least, 1), rng.uniform(least, 1)
    x, y = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
    return x, y, x + wide, y + high


def clean_box(rng: Random, hot: HotMap, tries: int = 40) -> tuple[float, float, float, float] | None:
    """A crop of a photo with roadwork in which nothing has its colours; None if none was found."""
    for _ in range(tries):
        wide = rng.uniform(0.28, 0.8)
        high = min(1.0, wide * rng.uniform(0.7, 1.6))
        x, y = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
        box = (x, y, x + wide, y + high)
        found, cells = hot.cells(box)
        # The middle must not be all sky: the crop reaches under 60 % of the photo's height.
        if found <= cells * 0.0003 and box[3] > 0.6:
            return box
    return None


def roadwork_box(rng: Random, hot: HotMap, tries: int = 40) -> tuple[float, float, float, float]:
    """A crop that keeps most of what has roadwork's colours; the whole photo if none was found."""
    everything, _ = hot.cells((0, 0, 1, 1))
    for _ in range(tries):
        box = random_box(rng, 0.3, whole=0.1)
        if hot.cells(box)[0] >= max(3, 0.7 * everything):
            return box
    return 0.0, 0.0, 1.0, 1.0


def crop(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Cuts a box given in shares."""
    wide, high = image.size
    return image.crop((round(box[0] * wide), round(box[1] * high), round(box[2] * wide), round(box[3] * high)))
