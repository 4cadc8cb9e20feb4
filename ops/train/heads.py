# ruff: noqa: T201 # a command of its own: it prints its figures
"""Fits a linear head on a frozen trunk: python -m ops.train.heads PHOTOS OUT KEY, after ops.train.features.

    sources   each training source is left out once, for every strength of the ridge; what is chosen is the strength of
              the best mean AUC on composites of the source left out, beside the two baselines fitted alike
    groups    five folds by group: each picture is scored by a head that saw nothing of its group. The calibrator
              (Platt) is fitted on these scores
    final     one head on every picture

Writes configs/models/KEY/{head.npz, training.sha256}, the calibrator at the end of its model.toml, and
OUT/KEY.fit.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from configs.model import load_model
from ops.train.baselines import logistic
from ops.train.calibrate import platt
from ops.train.data import TRAINING_SOURCES, rows, verify
from ops.train.measure import auc

STRENGTHS = (10.0, 100.0, 1000.0, 10_000.0)
BASELINES = ("colour histogram", "16-px thumbnail")
#: No picture is made of the clips: they hold next to none without roadwork. They are left out always.
CLIPS = "roadwork-clips"
FOLDS = 5
FITTED_ON = "{n} composites and rendered scenes, each scored by a head that saw nothing of its group; see CARD.md"

Features = dict[str, np.ndarray]


def fit(seen: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Weight (D,) and bias of a head for features as they come: their scaling is folded in."""
    w, b, mean, spread = logistic(seen.astype(np.float64), labels, strength)
    return w / spread, b - float(mean @ (w / spread))


def part(features: Features, kind: str) -> Features:
    """What features.py kept of pictures, or of photos."""
    return {name.removeprefix(kind + " "): value for name, value in features.items() if name.startswith(kind + " ")}


def without(source: str, pictures: Features, photos: Features, name: str, strength: float) -> dict[str, float | int]:
    """A head on features called ``name`` that never saw ``source``: its AUC there, on composites and on real photos."""
    kept, out = pictures["source"] != source, photos["source"] == source
    w, b = fit(pictures[name][kept], pictures["label"][kept], strength)
    made, real = pictures[name][~kept] @ w + b, photos[name][out] @ w + b
    return {
        "composites": auc(pictures["label"][~kept], made),
        "photos": auc(photos["label"][out], real),
        "roadwork": int(photos["label"][out].sum()),
        "none": int((photos["label"][out] == 0).sum()),
    }


def out_of_group(pictures: Features, strength: float) -> np.ndarray:
    """The score of each picture by a head that saw nothing of its group."""
    names = np.unique(pictures["group"])
    np.random.default_rng(3).shuffle(names)
    scores = np.empty(len(pictures["label"]))
    for fold in range(FOLDS):
        out = np.isin(pictures["group"], names[fold::FOLDS])
        w, b = fit(pictures["seen"][~out], pictures["label"][~out], strength)
        scores[out] = pictures["seen"][out] @ w + b
    return scores


def publish(key: str, head: tuple[np.ndarray, float], fitted: dict[str, object], digests: list[str]) -> None:
    """Writes what belongs to the project."""
    spec = load_model(key)
    np.savez(spec.path, weight=head[0].astype(np.float32), bias=np.float32(head[1]))
    (spec.folder / spec.training_list).write_text("\n".join(sorted(digests)) + "\n")
    row = spec.folder / "model.toml"
    before = row.read_text().partition("[calibrator]")[0]
    row.write_text(
        f"{before}[calibrator]\nslope = {fitted['slope']:.6f}\nintercept = {fitted['intercept']:.6f}\n"
        f'fitted_on = "{FITTED_ON.format(n=fitted["pictures"])}"\n'
    )


def main() -> None:
    """Chooses, calibrates, fits, publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("key")
    args = parser.parse_args()
    features = dict(np.load(args.out / f"{args.key}.features.npz"))
    pictures, photos = part(features, "picture"), part(features, "photo")
    sources = [source for source in TRAINING_SOURCES if source != CLIPS]

    tried = {}
    for strength in STRENGTHS:
        rows_of = {source: without(source, pictures, photos, "seen", strength) for source in sources}
        tried[strength] = float(np.mean([row["composites"] for row in rows_of.values()])), rows_of
        print(f"strength {strength:g}: mean AUC {tried[strength][0]:.4f}, {rows_of}")
    best = max(tried, key=lambda strength: tried[strength][0])
    left_out: dict[str, object] = {"head": tried[best][1]}
    for name in BASELINES:
        left_out[name] = {source: without(source, pictures, photos, name, 1.0) for source in sources}
        print(name, left_out[name])

    scores = out_of_group(pictures, best)
    slope, intercept = platt(scores, pictures["label"])
    kinds = {kind: auc(pictures["label"][at], scores[at]) for kind in np.unique(pictures["kind"])
             for at in [pictures["kind"] == kind]}  # fmt: skip
    head = fit(pictures["seen"], pictures["label"], best)
    clips = photos["source"] == CLIPS
    p = 1 / (1 + np.exp(-(slope * (photos["seen"][clips] @ head[0] + head[1]) + intercept)))
    fitted: dict[str, object] = {
        "pictures": len(scores),
        "strength": best,
        "mean_auc_by_strength": {f"{strength:g}": value[0] for strength, value in tried.items()},
        "left_out": left_out,
        "out_of_group_auc": {"all": auc(pictures["label"], scores)} | kinds,
        "slope": slope,
        "intercept": intercept,
        "clips_called_roadwork": {
            f"label {label}": [int((p[photos["label"][clips] == label] >= 0.5).sum()),
                               int((photos["label"][clips] == label).sum())]
            for label in (1, 0)
        },
    }  # fmt: skip
    digests = [
        digest
        for row, digest in zip(rows(args.photos, "train"), verify(args.photos, "train"), strict=True)
        if row["file"].rsplit("-", 1)[0] in sources
    ]
    publish(args.key, head, fitted, digests)
    (args.out / f"{args.key}.fit.json").write_text(json.dumps(fitted, indent=1))
    print(json.dumps(fitted, indent=1))


if __name__ == "__main__":
    main()
