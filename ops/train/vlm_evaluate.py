# ruff: noqa: T201 # a command of its own: it prints its figures
"""mini-vlm on the 505 evaluate photos: python -m ops.train.vlm_evaluate PHOTOS OUT --note "why".

Last, and once: nothing is chosen by these photos. The photos go in as they are stored; both scouts score them too, so
that vlm_cascade can say what each tier does with those that escalate. The two baselines are fitted twice: on the
pictures of vlm_calibrate, and on the training photos as they are.
Writes OUT/vlm_evaluation.json, OUT/vlm_evaluation.npz and OUT/mini-vlm.table.md; adds a line to OUT/evaluations.log.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from ops.train.baselines import histogram, thumbnail
from ops.train.data import load
from ops.train.evaluate import figures, markdown, note, table
from ops.train.heads import BASELINES, CLIPS, fit
from ops.train.vlm_calibrate import KEY, SCOUTS, scout_scores, vlm_scores

BASELINE_STRENGTH = 1.0


def main() -> None:
    """Scores the photos and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--note", default="", help="why; goes to the log")
    args = parser.parse_args()
    test = load(args.photos, "evaluate")
    photos = [photo.image for photo in test]
    labels, sources, groups = (np.array([getattr(p, name) for p in test]) for name in ("label", "source", "group"))
    started = time.perf_counter()
    logits, outside = vlm_scores(args.out / KEY, photos)
    report: dict[str, object] = {
        "n": len(test),
        "positives": int(labels.sum()),
        "ms a photo": (time.perf_counter() - started) * 1000 / len(test),
        "outside": {"mean": float(outside.mean()), "max": float(outside.max())},
    }
    scores = {KEY: logits} | {key: scout_scores(key, photos) for key in SCOUTS}

    made = np.load(args.out / "vlm_calibration.npz")
    train = [photo for photo in load(args.photos, "train", short_side_px=320) if photo.source != CLIPS]
    for name, feature in zip(BASELINES, (histogram, thumbnail), strict=True):
        seen = np.stack([feature(photo) for photo in photos])
        real = np.stack([feature(photo.image) for photo in train])
        fitted = {
            "pictures": fit(made[name], made["labels"], BASELINE_STRENGTH),
            "photos": fit(real, np.array([photo.label for photo in train]), BASELINE_STRENGTH),
        }
        scores |= {f"{name}, on {kind}": seen @ w + b for kind, (w, b) in fitted.items()}
    rivals = {name: said for name, said in scores.items() if name != KEY}
    for name, said in scores.items():
        row = figures(labels, sources, groups, said, rivals if name == KEY else {})
        report[name] = row
        print(name, {key: np.round(value, 3).tolist() for key, value in row.items()})
    fitted = json.loads((args.out / "vlm_calibration.json").read_text())
    rows = table(sources, labels, fitted["slope"] * logits + fitted["intercept"] >= 0, logits)
    report["table"] = rows
    (args.out / f"{KEY}.table.md").write_text(markdown(rows) + "\n")
    (args.out / "vlm_evaluation.json").write_text(json.dumps(report, indent=1))
    np.savez_compressed(
        args.out / "vlm_evaluation.npz",
        labels=labels, sources=sources, groups=groups, files=np.array([p.file for p in test]), **scores,
    )  # fmt: skip
    note(args.out, f"{KEY} {args.note}")
    print(markdown(rows))
    print(f"{report['ms a photo']:.0f} ms a photo")


if __name__ == "__main__":
    main()
