# ruff: noqa: T201 # a command of its own: it prints its figures
"""Finds what the cascade's first tier may settle: python -m ops.train.thresholds OUT (seconds).

On the scores that calibrate.py kept it tries every pair of accept_below and accept_above of scout-s and every weight of
scout-m, and takes the best Matthews correlation of the whole cascade among those that escalate 40 % at most; among
near-equals (0.003) the one that escalates least. Writes OUT/thresholds.json, with the curve of MCC against cost.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ops.train.measure import confusion, mcc

#: Escalations cost: scout-m takes about three times as long as scout-s.
MOST_ESCALATED = 0.40
NEAR = 0.003


@dataclass(frozen=True)
class Rule:
    """Thresholds of scout-s, and the weights of both votes."""

    accept_above: float
    accept_below: float
    weight_s: float
    weight_m: float


def log_odds(fitted: dict[str, Any], key: str, logits: np.ndarray) -> np.ndarray:
    """Calibrated log-odds."""
    return fitted[key]["slope"] * logits + fitted[key]["intercept"]


def settle(rule: Rule, fitted: dict[str, Any], small: np.ndarray, large: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(roadwork) of the cascade, and which photos escalated."""
    s, m = log_odds(fitted, "scout-s", small), log_odds(fitted, "scout-m", large)
    p = 1 / (1 + np.exp(-s))
    escalated = (p < rule.accept_above) & (p > rule.accept_below)
    pooled = (rule.weight_s * s + rule.weight_m * m) / (rule.weight_s + rule.weight_m)
    return np.where(escalated, 1 / (1 + np.exp(-pooled)), p), escalated


def main() -> None:
    """Searches and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    fitted = json.loads((args.out / "calibration.json").read_text())
    scores = np.load(args.out / "calibration.npz")
    labels = scores["labels"]
    tried: list[tuple[float, float, Rule]] = []
    for weight in (1.0, 2.0, 3.0, 4.0, 6.0, 8.0):
        for below in np.arange(0.05, 0.50, 0.025):
            for above in np.arange(0.50, 0.99, 0.025):
                rule = Rule(round(float(above), 3), round(float(below), 3), 1.0, weight)
                p, escalated = settle(rule, fitted, scores["scout-s"], scores["scout-m"])
                tried.append((mcc(*confusion(labels, p >= 0.5)), float(escalated.mean()), rule))
    allowed = [one for one in tried if one[1] <= MOST_ESCALATED]
    best = max(one[0] for one in allowed)
    chosen = min((one for one in allowed if one[0] >= best - NEAR), key=lambda one: one[1])
    curve = {}
    for most in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
        under = [one[0] for one in tried if one[1] <= most]
        curve[f"{most:.1f}"] = round(max(under), 4) if under else None
    alone = {key: mcc(*confusion(labels, log_odds(fitted, key, scores[key]) >= 0)) for key in ("scout-s", "scout-m")}
    found = {
        "rule": asdict(chosen[2]),
        "mcc": chosen[0],
        "escalated": chosen[1],
        "mcc_alone": alone,
        "mcc_by_most_escalated": curve,
    }
    (args.out / "thresholds.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
