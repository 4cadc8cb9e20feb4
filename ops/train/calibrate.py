# ruff: noqa: T201 # a command of its own: it prints its figures
"""Fits the calibrators of the exported models: python -m ops.train.calibrate PHOTOS OUT (a minute on two cores).

Platt scaling of the int8 models' raw logits, fitted on pictures that training never drew: composites on training
backgrounds and rendered scenes, from seeds of their own, half of them with roadwork. Never on the 505 evaluate photos.
The calibrators that the held-out sources of the folds would give are written beside, for comparison: they are not used,
because a fold's models had a third of the final models' training and their logits have another scale.
Writes OUT/calibration.json and OUT/calibration.npz (the scores, for thresholds.py).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ops.train.export import run
from ops.train.measure import auc
from ops.train.pool import WITHOUT_CLIPS, gather, make
from ops.train.train import SIDE_PX
from workers.engines.square import square

#: First seed of pictures for calibration; training uses seeds under 2 * 10**9, export.py the next million.
FIRST_SEED = 3 * 10**9


def platt(logits: np.ndarray, labels: np.ndarray, rounds: int = 60) -> tuple[float, float]:
    """Slope and intercept that make sigmoid(slope * logit + intercept) most likely, both classes weighing the same."""
    weight = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    x = np.stack([logits.astype(np.float64), np.ones(len(logits))], axis=1)
    w = np.array([1.0, 0.0])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-x @ w))
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        w -= np.linalg.solve(curve, x.T @ (weight * (p - labels)))
    return float(w[0]), float(w[1])


def main() -> None:
    """Makes the pictures, scores them, fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    args = parser.parse_args()
    material = gather(args.photos, {})
    made = [make(material, WITHOUT_CLIPS, FIRST_SEED + i) for i in range(args.pictures)]
    labels = np.array([label for _, label, *_ in made])
    kinds = np.array([kind for *_, kind in made])
    folds = np.load(args.out / "folds.npz")
    # The fold without clips tells nothing here: its photos are of one label, its negatives were never checked.
    kept = folds["source"] != "roadwork-clips"
    fitted: dict[str, dict[str, object]] = {}
    logits = {}
    for key, side in SIDE_PX.items():
        logits[key] = run(
            args.out / f"{key}.onnx", np.stack([square(Image.fromarray(pixels), side) for pixels, *_ in made])
        )
        slope, intercept = platt(logits[key], labels)
        by_kind = {
            kind: round(auc(labels[kinds == kind], logits[key][kinds == kind]), 4) for kind in sorted(set(kinds))
        }
        fitted[key] = {
            "slope": slope,
            "intercept": intercept,
            "pictures": len(labels),
            "auc": by_kind,
            "folds": platt(folds[key][kept], folds["label"][kept]),
        }
        print(key, fitted[key])
    (args.out / "calibration.json").write_text(json.dumps(fitted, indent=1))
    np.savez_compressed(args.out / "calibration.npz", labels=labels, kinds=kinds, **logits)


if __name__ == "__main__":
    main()
