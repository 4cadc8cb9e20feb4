"""Fits how votes become one probability: a ridge logistic regression over their log-odds, with a term for each absence.

Source: D. Wolpert, Stacked generalization, Neural Networks, 1992. What is fitted is applied by routing.consensus.stack.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from configs.profile import Stack
from routing.consensus import logit, stack
from routing.messages import Vote

#: Of the ridge, on standardised inputs: as if each slope were known to be about 1 in size.
RIDGE = 1.0
#: Newton's method on a convex loss: it is there after a few.
MOST_STEPS = 50

Floats = npt.NDArray[np.float64]


class Sample(Struct, frozen=True):
    """A labelled photo: the votes that were cast on it, in their order."""

    #: Photos of one group are near copies, or of one camera: they are never split.
    group: str
    #: 1 roadwork, 0 none.
    label: int
    votes: tuple[Vote, ...]
    #: Where the photo is from; groups may be stretches of one origin.
    origin: str = ""


def fit(samples: Sequence[Sample], keys: Sequence[str]) -> Stack:
    """The stack that fits best, on all states of all samples.

    A photo was decided upon after each tier that voted on it, so each photo counts once in all, in equal shares as it
    stood after each of them. Were it fitted on the last state only, a vote that is still to come would be taken for one
    that a settled photo never needed.

    Args:
        samples: of both labels.
        keys: the models whose votes count; each has cast one.
    """
    rows, labels, shares = [], [], []
    for sample in samples:
        states = list(_states(sample.votes))
        rows += [_inputs(votes, keys) for votes in states]
        labels += [sample.label] * len(states)
        shares += [1 / len(states)] * len(states)
    x, share = np.array(rows), np.array(shares)
    mean = np.average(x, axis=0, weights=share)
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=share))
    # A column that never changes says nothing: its slope is 0.
    varies = spread > 1e-9
    spread[~varies] = 1.0
    weights, constant = _ridge((x - mean) / spread, np.array(labels, dtype=np.float64), share)
    slopes = np.where(varies, weights / spread, 0.0)
    n = len(keys)
    return Stack(
        intercept=float(constant - slopes @ mean),
        slopes=dict(zip(keys, slopes[:n].tolist(), strict=True)),
        missing={key: slope for key, slope, v in zip(keys, slopes[n:].tolist(), varies[n:], strict=True) if v},
    )


def absent(samples: Sequence[Sample], keys: Sequence[str]) -> list[str]:
    """The models that have no vote in some state of some sample: each has a term for that."""
    always = set(keys)
    for sample in samples:
        for votes in _states(sample.votes):
            always &= _cast(votes).keys()
    return [key for key in keys if key not in always]


def cross_validate(samples: Sequence[Sample], keys: Sequence[str], most_folds: int = 5) -> list[float | None]:
    """P(roadwork) of each sample by a stack that saw none of its group; None: of its models that stack knows none.

    Raises:
        ValueError: without one of the folds the rest is of one label.
    """
    fold_of = _folds([sample.group for sample in samples], most_folds)
    found: list[float | None] = [None] * len(samples)
    for fold in sorted(set(fold_of.values())):
        rest = [sample for sample in samples if fold_of[sample.group] != fold]
        if len({sample.label for sample in rest}) < 2:
            held = ", ".join(sorted(group for group, number in fold_of.items() if number == fold))
            raise ValueError(f"without {held} all labels are of one class")
        fitted = fit(rest, [key for key in keys if any(key in _cast(sample.votes) for sample in rest)])
        for i, sample in enumerate(samples):
            if fold_of[sample.group] == fold:
                found[i] = stack(sample.votes, fitted)
    return found


def _folds(groups: Sequence[str], most: int) -> dict[str, int]:
    """The fold of each group: the largest group first, each into the fold that has fewest photos."""
    sizes = Counter(groups)
    filled = [0] * min(most, len(sizes))
    fold_of = {}
    for group, n in sizes.most_common():
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += n
    return fold_of


def _states(votes: Sequence[Vote]) -> Iterator[list[Vote]]:
    """The votes as they stood after each tier."""
    held: list[Vote] = []
    for _, cast in groupby(votes, key=lambda vote: vote.tier):
        held = [*held, *cast]
        yield held


def _cast(votes: Sequence[Vote]) -> dict[str, float]:
    return {vote.model.partition("@")[0]: vote.p for vote in votes}


def _inputs(votes: Sequence[Vote], keys: Sequence[str]) -> list[float]:
    """Log-odds of each model, 0 where it has no vote; then 1 for each model without one."""
    cast = _cast(votes)
    return [logit(cast[key]) if key in cast else 0.0 for key in keys] + [float(key not in cast) for key in keys]


def _ridge(x: Floats, labels: Floats, share: Floats) -> tuple[Floats, float]:
    """Weights and constant of the smallest loss, by Newton's method; a step that overshoots is halved."""
    x = np.hstack([x, np.ones((len(x), 1))])
    # The constant is not shrunk; it is bounded only so that the curvature is never singular.
    ridge = np.diag([RIDGE] * (x.shape[1] - 1) + [1e-6])
    w = np.zeros(x.shape[1])

    def loss(w: Floats) -> float:
        z = x @ w
        return float(share @ (np.logaddexp(0, z) - labels * z) + w @ ridge @ w / 2)

    for _ in range(MOST_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        slope = x.T @ (share * (p - labels)) + ridge @ w
        curve = (x * (share * p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(curve, slope)
        while loss(w - step) > loss(w) and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w - step
        if np.abs(step).max() < 1e-8:
            break
    return w[:-1], float(w[-1])
