# ruff: noqa: T201 # a command of its own: it prints its figures
"""What mini-vlm adds to both scouts: python -m ops.train.vlm_cascade OUT, after vlm_calibrate and vlm_evaluate.

Photos escalate to it that scout-s leaves unsure, and then the pool of scout-s and scout-m: by the rule of
configs/demo.toml, whose thresholds of scout-s hold after scout-m as well. Its weight is chosen on calibration pictures:

    choose   on half of them, by group, the weight of the best MCC of the three votes pooled
    keep     on the other half, that weight stays only if the 95 % interval of the gain in MCC over both scouts alone
             lies above 0; else it is 0: the vote is recorded and moves nothing

On the escalated evaluate photos nothing is chosen: each tier alone, and together, with intervals over groups.
Writes OUT/vlm_cascade.json and the section "mini-vlm" of var/vlm.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from configs.model import load_model
from configs.profile import load_profile
from ops.train.heads import BASELINES
from ops.train.measure import auc, bootstrap, confusion, mcc
from ops.train.vlm_calibrate import KEY, SCOUTS

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 3.0, 6.0)
REPORT = Path("var/vlm.json")

Odds = dict[str, np.ndarray]
#: Weight of each vote, by model key.
Weights = dict[str, float]


class Rule:
    """What settles, and what the scouts' votes weigh."""

    def __init__(self) -> None:
        small, large = load_profile("demo").tiers
        self.above, self.below = small.accept_above, small.accept_below
        self.scouts: Weights = {small.model: small.weight, large.model: large.weight}

    def unsure(self, odds: np.ndarray) -> np.ndarray:
        """Which log-odds settle nothing."""
        p = 1 / (1 + np.exp(-odds))
        return (p < self.above) & (p > self.below)

    def escalated(self, odds: Odds) -> np.ndarray:
        """Which photos reach mini-vlm."""
        return self.unsure(odds[SCOUTS[0]]) & self.unsure(pooled(odds, self.scouts))


def pooled(odds: Odds, weights: Weights) -> np.ndarray:
    """Weighted mean of log-odds, as routing.consensus.pool takes it."""
    return sum(weight * odds[key] for key, weight in weights.items()) / sum(weights.values())


def mcc_of(labels: np.ndarray, odds: np.ndarray) -> float:
    """At P of 0.5."""
    return mcc(*confusion(labels, odds >= 0))


def log_odds(scores: Any, fitted: dict[str, float]) -> Odds:
    """Calibrated, of each tier."""
    slopes = {key: (load_model(key).calibrator.slope, load_model(key).calibrator.intercept) for key in SCOUTS}
    slopes[KEY] = fitted["slope"], fitted["intercept"]
    return {key: slope * scores[key] + intercept for key, (slope, intercept) in slopes.items()}


def choose(rule: Rule, odds: Odds, labels: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """The weight of mini-vlm, on escalated calibration pictures."""
    names = np.unique(groups)
    np.random.default_rng(5).shuffle(names)
    first = np.isin(groups, names[::2])
    by_weight = {
        weight: mcc_of(labels[first], pooled(odds, rule.scouts | {KEY: weight})[first]) for weight in (0.0, *WEIGHTS)
    }
    best = max(WEIGHTS, key=lambda weight: by_weight[weight])
    before, after = (pooled(odds, rule.scouts | {KEY: weight})[~first] for weight in (0.0, best))
    truth, held = labels[~first], groups[~first]
    gain = bootstrap(held, lambda at: mcc_of(truth[at], after[at]) - mcc_of(truth[at], before[at]))
    return {
        "mcc_by_weight": by_weight,
        "best": best,
        "pictures": [int(first.sum()), int((~first).sum())],
        "mcc": [mcc_of(truth, before), mcc_of(truth, after)],
        "auc": [auc(truth, before), auc(truth, after)],
        "gain_in_mcc": gain,
        "gain_in_auc": bootstrap(held, lambda at: auc(truth[at], after[at]) - auc(truth[at], before[at])),
        "weight": best if gain[0] > 0 else 0.0,
    }


def figures(labels: np.ndarray, groups: np.ndarray, said: np.ndarray, over: np.ndarray | None = None) -> dict[str, Any]:
    """AUC and MCC of log-odds with their intervals, and the gain over others; of one label alone counts only."""
    found: dict[str, Any] = {"counts": dict(zip(("tp", "tn", "fp", "fn"), confusion(labels, said >= 0), strict=True))}
    if len(set(labels)) < len(("roadwork", "none")):
        return found
    for name, figure in (("auc", auc), ("mcc", mcc_of)):
        found[name] = figure(labels, said)
        found[f"{name}_interval"] = bootstrap(groups, lambda at, f=figure: f(labels[at], said[at]))
        if over is not None:
            found[f"gain_in_{name}"] = bootstrap(
                groups, lambda at, f=figure: f(labels[at], said[at]) - f(labels[at], over[at])
            )
    return found


def compare(
    rule: Rule, odds: Odds, others: Odds, labels: np.ndarray, groups: np.ndarray, best: float
) -> dict[str, Any]:
    """Each tier alone and together on the same photos; ``others`` are log-odds of baselines."""
    scouts = pooled(odds, rule.scouts)
    together = {f"all three, mini-vlm at {weight:g}": pooled(odds, rule.scouts | {KEY: weight}) for weight in (best,)}
    found = {"n": len(labels), "positives": int(labels.sum()), "groups": len(set(groups))}
    lines = {"scout-s": odds["scout-s"], "scout-m": odds["scout-m"], KEY: odds[KEY], "both scouts": scouts}
    return found | {name: figures(labels, groups, said, scouts) for name, said in (lines | together | others).items()}


def markdown(found: dict[str, Any]) -> str:
    """A table of a card."""

    def shown(row: dict[str, Any], name: str) -> str:
        if name not in row:
            return "-"
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"

    lines = ["| on the same photos | AUC | MCC at p >= 0.5 | tp | tn | fp | fn |", "|---|---|---|---|---|---|---|"]
    for name, row in found.items():
        if isinstance(row, dict) and "counts" in row:
            cells = [name, shown(row, "auc"), shown(row, "mcc"), *map(str, row["counts"].values())]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def keep(section: dict[str, Any]) -> None:
    """Writes the section; what others wrote into the file stays."""
    whole = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(whole | {KEY: section}, indent=2) + "\n")


def main() -> None:
    """Chooses, then compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rule, fitted = Rule(), json.loads((args.out / "vlm_calibration.json").read_text())
    made, real = np.load(args.out / "vlm_calibration.npz"), np.load(args.out / "vlm_evaluation.npz")

    odds = log_odds(made, fitted)
    at = rule.escalated(odds)
    labels, groups = made["labels"], made["groups"]
    chosen = choose(rule, {key: said[at] for key, said in odds.items()}, labels[at], groups[at])
    chosen |= {"escalated": float(at.mean()), "to_scout-m": float(rule.unsure(odds["scout-s"]).mean())}

    odds = log_odds(real, fitted)
    others = {name: real[name] for name in real.files if name.startswith(BASELINES)}
    labels, groups, sources = real["labels"], real["groups"], real["sources"]
    at = rule.escalated(odds)
    part = [{key: said[at] for key, said in which.items()} for which in (odds, others)]
    unseen = compare(rule, part[0], part[1], labels[at], groups[at], chosen["best"])
    by_source = {
        name: [int((at & (sources == name)).sum()), int((sources == name).sum())]
        for name in sorted(set(sources.tolist()))
    }
    everything = compare(rule, odds, others, labels, groups, chosen["best"])
    votes = rule.scouts | {KEY: chosen["weight"]}
    scouts = pooled(odds, rule.scouts)
    settled = np.where(rule.unsure(odds["scout-s"]), np.where(at, pooled(odds, votes), scouts), odds["scout-s"])
    section = {
        "rule": {"accept_above": rule.above, "accept_below": rule.below, "weights": votes},
        "chosen_on_calibration_pictures": chosen,
        "escalated_evaluate_photos": unseen | {"by_source": by_source},
        "all_evaluate_photos": everything | {"cascade": figures(labels, groups, settled)},
    }
    (args.out / "vlm_cascade.json").write_text(json.dumps(section, indent=1))
    keep(section)
    print(json.dumps(chosen, indent=1))
    print(f"escalated: {unseen['n']} photos, {unseen['positives']} with roadwork; {by_source}")
    print(markdown(unseen)), print(f"all {len(labels)}:"), print(markdown(section["all_evaluate_photos"]))
    print(f"weight of {KEY}: {chosen['weight']:g}")


if __name__ == "__main__":
    main()
