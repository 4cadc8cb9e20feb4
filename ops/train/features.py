# ruff: noqa: T201 # a command of its own: it prints its figures
"""What a frozen trunk sees in the training pictures and photos: python -m ops.train.features PHOTOS OUT KEY.

Pictures are made as for the scouts (pool.py): from each background both labels, no photo of the clips, of which there
are none without roadwork. The trunk runs through the fleet's own engine, so that a head is fitted on exactly what it
will be given. Writes OUT/KEY.features.npz; ten minutes on two cores.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from configs.model import load_model
from ops.train.baselines import histogram, thumbnail
from ops.train.data import Use, load
from ops.train.pool import RENDERED, WITHOUT_CLIPS, Filling, Pool, gather
from workers.engines import Runtime, build
from workers.engines.probe import Probe, packaged
from workers.engines.square import square

#: First seed of these pictures; the scouts' are under 2 * 10**9, their calibrator's begin at 3 * 10**9.
FIRST_SEED = 4 * 10**9
BATCH = 8


def trunk_of(key: str) -> tuple[Probe, int]:
    """A model's engine with its trunk only, and the side of its input in pixels."""
    spec = load_model(key)
    engine = build(spec, Runtime(max_batch=BATCH))
    if not isinstance(engine, Probe):
        raise SystemExit(f"{key} is no linear probe")
    engine.load_trunk(packaged(spec))
    return engine, spec.input_px


def see(engine: Probe, side_px: int, images: list[Image.Image]) -> dict[str, np.ndarray]:
    """Features of images, (N, D), and those of the two baselines."""
    return {
        "seen": np.concatenate([
            engine.features([square(image, side_px) for image in images[start : start + BATCH]])
            for start in range(0, len(images), BATCH)
        ]),
        "colour histogram": np.stack([histogram(image) for image in images]),
        "16-px thumbnail": np.stack([thumbnail(image) for image in images]),
    }  # fmt: skip


def of_photos(engine: Probe, side_px: int, folder: Path, use: Use) -> dict[str, np.ndarray]:
    """The same of the photos of one use, with label, source and group of each."""
    photos = load(folder, use)
    marks = {name: np.array([getattr(photo, name) for photo in photos]) for name in ("label", "source", "group")}
    return marks | see(engine, side_px, [photo.image for photo in photos])


def of_pictures(engine: Probe, side_px: int, pool: Pool) -> dict[str, np.ndarray]:
    """The same of made pictures; a rendered scene is a group of its own with its pair."""
    groups = [
        f"{group}-{i // 2}" if group == RENDERED else str(group) for i, group in enumerate(pool.groups)
    ]  # fmt: skip
    marks = {"label": pool.labels.astype(int), "source": pool.sources, "group": np.array(groups), "kind": pool.kinds}
    return marks | see(engine, side_px, [Image.fromarray(pixels) for pixels in pool.pixels])


def main() -> None:
    """Makes the pictures and looks at them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("key")
    parser.add_argument("--pictures", type=int, default=1600)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    filling = Filling(gather(args.photos, {}), WITHOUT_CLIPS, args.pictures, os.cpu_count() or 1, FIRST_SEED)
    pool = filling.take(args.pictures)
    print(f"{args.pictures} pictures in {time.monotonic() - started:.0f} s")
    engine, side_px = trunk_of(args.key)
    found = {f"picture {name}": value for name, value in of_pictures(engine, side_px, pool).items()}
    found |= {f"photo {name}": value for name, value in of_photos(engine, side_px, args.photos, "train").items()}
    np.savez_compressed(args.out / f"{args.key}.features.npz", **found)
    print(f"{args.key}: features of all in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
