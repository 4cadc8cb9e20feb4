# ruff: noqa: T201 # a command of its own: it prints its figures
"""A head's figures on the 505 evaluate photos: python -m ops.train.evaluate_heads PHOTOS OUT KEY --note "why".

Last, and once: nothing is chosen by these photos. The model runs through the fleet's engine, as it is shipped. The two
baselines are fitted twice: on the pictures that the head was fitted on, and on the training photos as they are.
Writes OUT/KEY.evaluation.json and OUT/KEY.table.md, and adds a line to OUT/evaluations.log.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from configs.model import load_model
from ops.train.baselines import histogram, thumbnail
from ops.train.data import load
from ops.train.evaluate import figures, markdown, note, table
from ops.train.heads import BASELINES, fit, part
from workers.engines import Runtime, Shot, build

BASELINE_STRENGTH = 1.0


def main() -> None:
    """Scores the photos and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("key")
    parser.add_argument("--note", default="", help="why; goes to the log")
    args = parser.parse_args()
    spec = load_model(args.key)
    engine = build(spec, Runtime(max_batch=8))
    engine.load()
    test = load(args.photos, "evaluate")
    labels, sources, groups = (np.array([getattr(p, name) for p in test]) for name in ("label", "source", "group"))
    inputs = [engine.prepare(photo.image, Shot()) for photo in test]
    started = time.perf_counter()
    scores = {args.key: np.concatenate([engine.score(inputs[i : i + 8]) for i in range(0, len(inputs), 8)])}
    report: dict[str, object] = {"ms a photo": (time.perf_counter() - started) * 1000 / len(test)}

    features = dict(np.load(args.out / f"{args.key}.features.npz"))
    for name, feature in zip(BASELINES, (histogram, thumbnail), strict=True):
        seen = np.stack([feature(photo.image) for photo in test])
        for kind in ("picture", "photo"):
            made = part(features, kind)
            w, b = fit(made[name], made["label"], BASELINE_STRENGTH)
            scores[f"{name}, on {kind}s"] = seen @ w + b
    rivals = {name: said for name, said in scores.items() if name != args.key}
    for name, said in scores.items():
        row = figures(labels, sources, groups, said, rivals if name == args.key else {})
        report[name] = row
        print(name, {key: np.round(value, 3).tolist() for key, value in row.items()})
    p = 1 / (1 + np.exp(-(spec.calibrator.slope * scores[args.key] + spec.calibrator.intercept)))
    report["table"] = table(sources, labels, p >= 0.5, scores[args.key])
    (args.out / f"{args.key}.table.md").write_text(markdown(report["table"]) + "\n")
    (args.out / f"{args.key}.evaluation.json").write_text(json.dumps(report, indent=1))
    note(args.out, f"{args.key} {args.note}")
    print(markdown(report["table"]))
    print(f"{report['ms a photo']:.0f} ms a photo")


if __name__ == "__main__":
    main()
