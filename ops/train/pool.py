"""Makes the training pool: many labelled pictures of one size in one array, each with the source of its background.

Folds and the final fit draw from the same pool, so a picture is made once. A picture's seed makes it; the pool's
content does not depend on how many processes make it.
"""

import mmap
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from ops.train.composite import add_ordinary, add_roadwork, wear
from ops.train.data import HotMap, Photo, crop, load, random_box, roadwork_box
from producers.scenes import TRAINING_SEEDS, render

#: Side of a pool picture; the models take smaller ones cut from it.
POOL_PX = 320
RENDERED = "rendered"

#: How often a kind of picture is made. Every kind holds both labels in equal numbers.
#: Kinds that need no photo of the clips, and those that need their clean crops.
WITHOUT_CLIPS = {"pair": 80, "brazil": 4, "rendered": 16}
OF_CLIPS = {"clip": 55, "clip-pair": 45}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Material:
    """What pictures are made from."""

    #: Photos without roadwork.
    negatives: Sequence[Photo]
    #: Photos with roadwork.
    positives: Sequence[Photo]
    #: By file of a positive: crops of it that hold no roadwork (see mine.py).
    clean: dict[str, list[Box]]
    #: Positives that have clean crops: their source can give both labels.
    both: Sequence[Photo]


@dataclass
class Pool:
    """``pixels`` (N, POOL_PX, POOL_PX, 3) uint8 RGB; label, source, group and kind of each."""

    pixels: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    groups: np.ndarray
    kinds: np.ndarray


def gather(folder: Path, clean: dict[str, list[Box]]) -> Material:
    """Reads the training photos of a folder."""
    photos = load(folder, "train", short_side_px=420)
    positives = [photo for photo in photos if photo.label]
    return Material(
        negatives=[photo for photo in photos if not photo.label],
        positives=positives,
        clean=clean,
        both=[photo for photo in positives if clean.get(photo.file)],
    )


def _background(material: Material, kind: str, rng: Random) -> tuple[Image.Image, Photo]:
    """A place without roadwork: a crop of a negative (sources in equal shares), or a clean crop of a positive."""
    if kind == "clip-pair":
        photo = rng.choice(material.both)
        return crop(photo.image, rng.choice(material.clean[photo.file])), photo
    source = rng.choice(("brazil-dnit", "indian-obstacles"))
    photo = rng.choice([photo for photo in material.negatives if photo.source == source])
    return crop(photo.image, random_box(rng)), photo


def _size(image: Image.Image, rng: Random) -> Image.Image:
    side = rng.uniform(260, 460)
    share = side / max(image.size)
    return image.resize(
        (max(64, round(image.width * share)), max(64, round(image.height * share))), Image.Resampling.BICUBIC
    )


def make(material: Material, kinds: dict[str, int], seed: int) -> tuple[np.ndarray, int, str, str, str]:
    """One picture by its seed, squashed to a square: pixels, label, source, group, kind."""
    image, *mark = draw(material, kinds, seed)
    return np.asarray(image.resize((POOL_PX, POOL_PX), Image.Resampling.BILINEAR)), *mark


def draw(material: Material, kinds: dict[str, int], seed: int) -> tuple[Image.Image, int, str, str, str]:
    """The same as it is, of any shape, 260 to 460 px long; seeds 2n and 2n + 1 are the two labels of a pair."""
    rng, label = Random(seed // 2), seed % 2
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    if kind == "clip":
        photo = rng.choice(material.both)
        box = roadwork_box(rng, HotMap(photo.image)) if label else rng.choice(material.clean[photo.file])
        image, source, group = _size(crop(photo.image, box), rng), photo.source, photo.group
    elif kind == "brazil":
        chosen = [p for p in (material.positives if label else material.negatives) if p.source == "brazil-dnit"]
        photo = rng.choice(chosen)
        box = roadwork_box(rng, HotMap(photo.image)) if label else random_box(rng)
        image, source, group = _size(crop(photo.image, box), rng), photo.source, photo.group
    elif kind == "rendered":
        start = TRAINING_SEEDS.start + rng.randrange(len(TRAINING_SEEDS) - 64)
        image, found = render(start, (480, 270))
        while found != label:
            start += 1
            image, found = render(start, (480, 270))
        source, group = RENDERED, RENDERED
    else:
        raw, photo = _background(material, kind, rng)
        source, group = photo.source, photo.group
        image = _size(raw, rng)
        if rng.random() < 0.65:
            add_ordinary(image, rng, rng.randint(1, 5))
        if label:
            add_roadwork(image, Random(seed))
    # One seed for both: a pair is worn alike.
    image = wear(image, Random(seed // 2 + 17))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image, label, source, group, kind


#: What forked children work on and write to. Inherited, never sent: pickling the photos for every task took a hundred
#: times longer than making the pictures.
_shared: list[tuple[Material, dict[str, int], int, np.ndarray]] = []


def _make_shared(place: int) -> tuple[int, str, str, str]:
    material, kinds, first_seed, pixels = _shared[0]
    pixels[place], *mark = make(material, kinds, first_seed + place)
    return tuple(mark)


class Filling:
    """A pool that processes fill while the caller does something else."""

    def __init__(self, material: Material, kinds: dict[str, int], count: int, processes: int, first_seed: int) -> None:
        memory = mmap.mmap(-1, count * POOL_PX * POOL_PX * 3)  # anonymous and shared with forked children
        self._pixels = np.frombuffer(memory, dtype=np.uint8).reshape(count, POOL_PX, POOL_PX, 3)
        _shared[:] = [(material, kinds, first_seed, self._pixels)]
        self._workers = multiprocessing.get_context("fork").Pool(processes)
        self._made = self._workers.imap(_make_shared, range(count), chunksize=16)
        self._marks: list[tuple[int, str, str, str]] = []

    def take(self, count: int) -> Pool:
        """The first ``count`` pictures, as soon as they are there."""
        while len(self._marks) < count:
            self._marks.append(next(self._made))
        if count == len(self._pixels):
            self._workers.terminate()
        labels, sources, groups, kinds = (np.array(column) for column in zip(*self._marks[:count], strict=True))
        return Pool(self._pixels[:count], labels.astype(np.float32), sources, groups, kinds)


def join(first: Pool, second: Pool) -> Pool:
    """Both pools' marks; the pixels are the caller's to join, on the device."""
    parts = [(getattr(first, name), getattr(second, name)) for name in ("labels", "sources", "groups", "kinds")]
    return Pool(np.empty((0,)), *(np.concatenate(part) for part in parts))
