"""Figures: area under the curve, Matthews correlation, Wilson intervals, bootstrap intervals by group."""

from collections.abc import Callable

import numpy as np


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores over a negative, ties counting half."""
    order = np.argsort(scores, kind="stable")
    values, inverse, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    ranks = np.empty(len(scores))
    ranks[order] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = labels == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)) if n1 and n0 and len(values) else float("nan")


def confusion(labels: np.ndarray, said: np.ndarray) -> tuple[int, int, int, int]:
    """(tp, tn, fp, fn)."""
    yes, true = said.astype(bool), labels == 1
    return int((yes & true).sum()), int((~yes & ~true).sum()), int((yes & ~true).sum()), int((~yes & true).sum())


def mcc(tp: int, tn: int, fp: int, fn: int) -> float:
    """Matthews correlation; 0 when a row or column is empty."""
    below = float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / below**0.5 if below else 0.0


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    if not total:
        return 0.0, 1.0
    p, zz = hits / total, z * z / total
    middle, half = p + zz / 2, z * (p * (1 - p) / total + zz / (4 * total)) ** 0.5
    return (middle - half) / (1 + zz), (middle + half) / (1 + zz)


def bootstrap(
    groups: np.ndarray, figure: Callable[[np.ndarray], float], rounds: int = 2000, seed: int = 7
) -> tuple[float, float]:
    """95 % interval of ``figure(indices)``; whole groups are drawn, because photos of one group are near copies."""
    rng = np.random.default_rng(seed)
    names, inverse = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(inverse == i) for i in range(len(names))]
    found = []
    for _ in range(rounds):
        value = figure(np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))]))
        if not np.isnan(value):
            found.append(value)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
