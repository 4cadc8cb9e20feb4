# ruff: noqa: T201 # a command of its own: it prints its figures
"""The report on the 505 evaluate photos: python -m ops.train.evaluate PHOTOS OUT (a minute on two cores).

They were never trained or tuned on. Writes OUT/evaluation.json and, for each model, the tables of its card; adds a
line to OUT/evaluations.log, so that a card can say how often this was done.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from ops.train.baselines import scores as baseline_scores
from ops.train.data import load
from ops.train.measure import auc, bootstrap, confusion, mcc, wilson
from ops.train.train import SIDE_PX
from workers.engines.square import square


def run(path: Path, pictures: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Raw logits of an ONNX file on one thread, and milliseconds a photo at batches of eight."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {"photos": np.stack(pictures[:8])})
    started = time.perf_counter()
    batches = [np.stack(pictures[start : start + 8]) for start in range(0, len(pictures), 8)]
    found = [session.run(None, {"photos": batch})[0] for batch in batches]
    return np.concatenate(found), (time.perf_counter() - started) * 1000 / len(pictures)


def table(sources: np.ndarray, labels: np.ndarray, said: np.ndarray, logits: np.ndarray) -> list[dict[str, object]]:
    """One row a source and one for all: counts, rates with intervals, AUC and MCC where both classes have ten."""
    found = []
    for name in (*sorted(set(sources)), "all"):
        at = np.full(len(sources), True) if name == "all" else sources == name
        tp, tn, fp, fn = confusion(labels[at], said[at])
        both = min(tp + fn, tn + fp) >= 10
        found.append({
            "source": name, "n": int(at.sum()), "tp": tp, "tn": tn, "fp": fp, "fn": fn,
            "tpr": tp / (tp + fn) if tp + fn else None, "tpr_interval": wilson(tp, tp + fn) if tp + fn else None,
            "fpr": fp / (fp + tn) if fp + tn else None, "fpr_interval": wilson(fp, fp + tn) if fp + tn else None,
            "mcc": mcc(tp, tn, fp, fn) if both else None, "auc": auc(labels[at], logits[at]) if both else None,
        })  # fmt: skip
    return found


def markdown(found: list[dict[str, object]]) -> str:
    """A table of a card."""

    def share(row: dict[str, object], key: str) -> str:
        if row[key] is None:
            return "-"
        low, high = row[key + "_interval"]
        return f"{row[key]:.3f} ({low:.3f}-{high:.3f})"

    lines = [
        "| source | n | tp | tn | fp | fn | true-positive rate (95 %) | false-positive rate (95 %) | MCC | AUC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        figures = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("mcc", "auc")]
        counts = [str(row[key]) for key in ("source", "n", "tp", "tn", "fp", "fn")]
        lines.append("| " + " | ".join([*counts, share(row, "tpr"), share(row, "fpr"), *figures]) + " |")
    return "\n".join(lines)


def figures(
    labels: np.ndarray,
    sources: np.ndarray,
    groups: np.ndarray,
    scores: np.ndarray,
    rivals: Mapping[str, np.ndarray],
) -> dict[str, object]:
    """AUC on all photos and on tracon's, and the lead over each rival; intervals by group."""
    tracon = sources == "tracon"
    return {
        "auc": auc(labels, scores),
        "interval": bootstrap(groups, lambda at: auc(labels[at], scores[at])),
        "auc_tracon": auc(labels[tracon], scores[tracon]),
        "interval_tracon": bootstrap(groups[tracon], lambda at: auc(labels[tracon][at], scores[tracon][at])),
    } | {
        f"over {name}": bootstrap(groups, lambda at, r=rival: auc(labels[at], scores[at]) - auc(labels[at], r[at]))
        for name, rival in rivals.items()
    }


def note(out: Path, text: str) -> None:
    """Adds a line to OUT/evaluations.log: each look at these photos is written down."""
    with (out / "evaluations.log").open("a") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M')} {text}\n")


def main() -> None:
    """Evaluates both models, float and int8, and both baselines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--note", default="", help="why; goes to the log")
    args = parser.parse_args()
    test, train = load(args.photos, "evaluate"), load(args.photos, "train", short_side_px=320)
    labels, sources = np.array([p.label for p in test]), np.array([p.source for p in test])
    groups = np.array([p.group for p in test])
    report: dict[str, object] = {"n": len(test), "positives": int(labels.sum())}
    logits: dict[str, np.ndarray] = {}
    for kind in ("colour histogram", "16-px thumbnail"):
        logits[kind] = baseline_scores(
            kind, [p.image for p in train], np.array([p.label for p in train]), [p.image for p in test]
        )
    for key, side in SIDE_PX.items():
        pictures = [square(p.image, side) for p in test]
        for name, file in ((f"{key} float", f"{key}.float.onnx"), (key, f"{key}.onnx")):
            logits[name], ms = run(args.out / file, pictures)
            report[f"{name} ms"] = round(ms, 2)
    rivals = {kind: logits[kind] for kind in ("colour histogram", "16-px thumbnail")}
    for name, scores in logits.items():
        row = figures(labels, sources, groups, scores, rivals if name.startswith("scout") else {})
        report[name] = row
        print(name, {key: np.round(value, 4).tolist() for key, value in row.items()})
    tuned = args.out / "calibration.json"
    if tuned.exists():
        fitted = json.loads(tuned.read_text())
        for key in SIDE_PX:
            p = 1 / (1 + np.exp(-(fitted[key]["slope"] * logits[key] + fitted[key]["intercept"])))
            rows = table(sources, labels, p >= 0.5, logits[key])
            report[f"{key} table"] = rows
            (args.out / f"{key}.table.md").write_text(markdown(rows) + "\n")
            print(key, "at p >= 0.5"), print(markdown(rows))
        cascade = args.out / "thresholds.json"
        if cascade.exists():
            from ops.train.thresholds import Rule, settle  # noqa: PLC0415 # it reads what calibrate.py wrote

            rule = Rule(**json.loads(cascade.read_text())["rule"])
            pooled, escalated = settle(rule, fitted, logits["scout-s"], logits["scout-m"])
            rows = table(sources, labels, pooled >= 0.5, pooled)
            report["cascade"] = {"escalated": float(escalated.mean()), "table": rows}
            (args.out / "cascade.table.md").write_text(markdown(rows) + "\n")
            print(f"cascade: {escalated.mean():.3f} of the photos escalate"), print(markdown(rows))
    (args.out / "evaluation.json").write_text(json.dumps(report, indent=1))
    np.savez_compressed(args.out / "evaluation.npz", labels=labels, sources=sources, **logits)
    note(args.out, args.note)
    print({key: value for key, value in report.items() if key.endswith(" ms")})


if __name__ == "__main__":
    main()
