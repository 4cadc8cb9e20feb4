# ruff: noqa: T201 # a command of its own: it prints its figures
"""Fits mini-vlm's calibrator: python -m ops.train.vlm_calibrate PHOTOS OUT (ten minutes on two cores).

Platt scaling of its log-odds, on pictures that no training drew: composites on training backgrounds and rendered
scenes, from seeds of their own, half with roadwork. Both scouts score the same pictures, so that vlm_cascade can find
what mini-vlm adds to them. Never on the 505 evaluate photos.
Writes OUT/vlm_calibration.json, and OUT/vlm_calibration.npz: scores, marks, and what the trivial baselines see.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from configs.model import load_model
from ops.train.baselines import histogram, thumbnail
from ops.train.calibrate import platt
from ops.train.measure import auc
from ops.train.pool import RENDERED, WITHOUT_CLIPS, draw, gather
from ops.train.vlm_read import Reader
from workers.engines import Runtime, Shot, build

#: First seed of these pictures: the scouts' and the heads' are under 5 * 10**9, mini-vlm's the 60,000 from there on.
FIRST_SEED = 6 * 10**9
SCOUTS = ("scout-s", "scout-m")
KEY = "mini-vlm"


def scout_scores(key: str, pictures: list[Image.Image]) -> np.ndarray:
    """Raw logits of a scout as it is shipped, through the fleet's engine."""
    engine = build(load_model(key), Runtime(max_batch=8))
    engine.load()
    parts = (pictures[start : start + 8] for start in range(0, len(pictures), 8))
    return np.concatenate([engine.score([engine.prepare(one, Shot()) for one in part]) for part in parts])


def vlm_scores(folder: Path, pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of mini-vlm, and the probability of other words."""
    reader = Reader(folder)
    found = np.array([reader.read(picture) for picture in pictures])
    return found[:, 0], found[:, 1]


def main() -> None:
    """Makes the pictures, scores them, fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=6000)
    args = parser.parse_args()
    started = time.monotonic()
    material = gather(args.photos, {})
    made = [draw(material, WITHOUT_CLIPS, FIRST_SEED + i) for i in range(args.pictures)]
    pictures = [image for image, *_ in made]
    labels, sources, groups, kinds = (np.array(column) for column in list(zip(*made, strict=True))[1:])
    # Rendered scenes have no place in common; only a pair has one.
    pairs = np.array([f"{RENDERED}-{i // 2}" for i in range(len(made))])
    groups = np.where(kinds == RENDERED, pairs, groups)
    print(f"{len(made)} pictures after {time.monotonic() - started:.0f} s", flush=True)
    scores = {key: scout_scores(key, pictures) for key in SCOUTS}
    scores[KEY], outside = vlm_scores(args.out / KEY, pictures)
    slope, intercept = platt(scores[KEY], labels)
    found = {
        "slope": slope,
        "intercept": intercept,
        "pictures": len(labels),
        "groups": len(set(groups)),
        "outside": {"mean": float(outside.mean()), "max": float(outside.max())},
        "auc": {
            key: {"all": auc(labels, said)}
            | {kind: auc(labels[kinds == kind], said[kinds == kind]) for kind in sorted(set(kinds))}
            for key, said in scores.items()
        },
    }
    (args.out / "vlm_calibration.json").write_text(json.dumps(found, indent=1))
    baselines = {
        "colour histogram": np.stack([histogram(picture) for picture in pictures]).astype(np.float32),
        "16-px thumbnail": np.stack([thumbnail(picture) for picture in pictures]).astype(np.float32),
    }
    np.savez_compressed(
        args.out / "vlm_calibration.npz",
        labels=labels, sources=sources, groups=groups, kinds=kinds, **scores, **baselines,
    )  # fmt: skip
    print(json.dumps(found, indent=1), f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
