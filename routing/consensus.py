"""Many votes, one probability: pooled by log-odds, or stacked where labels were there to fit it; and who agrees."""

import math
from collections.abc import Sequence

from configs.profile import Stack
from routing.messages import Vote


def sigmoid(x: float) -> float:
    """The logistic function, without overflow at either end; in (0, 1)."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    e = math.exp(x)
    return e / (1 + e)


def logit(p: float) -> float:
    """Log-odds of p in (0, 1)."""
    return math.log(p / (1 - p))


def pool(votes: Sequence[Vote]) -> float | None:
    """P(roadwork) by the weighted mean of log-odds; None without a vote of any weight.

    Symmetric: pooling 1 - p gives 1 - pool(p), which a geometric mean of the p does not. Source: Satopaa et al.,
    Combining multiple probability predictions using a simple logit model, International Journal of Forecasting, 2014.
    """
    weight = math.fsum(v.weight for v in votes)
    if weight <= 0:
        return None
    return sigmoid(math.fsum(v.weight * logit(v.p) for v in votes) / weight)


def stack(votes: Sequence[Vote], fitted: Stack) -> float | None:
    """P(roadwork) by a logistic regression over the votes' log-odds; None without a vote that it knows.

    A model that has no vote (it abstained, or the item never reached it) contributes its ``missing`` term in place of
    its slope: abstaining is information, and it is not p = 0.5. Source: D. Wolpert, Stacked generalization, Neural
    Networks, 1992; missing-indicator method: O. Miettinen, Theoretical Epidemiology, 1985.
    """
    cast = {key: v.p for v in votes if (key := v.model.partition("@")[0]) in fitted.slopes}
    if not cast:
        return None
    terms = [slope * logit(cast[key]) for key, slope in fitted.slopes.items() if key in cast]
    terms += [fitted.missing.get(key, 0.0) for key in fitted.slopes if key not in cast]
    return sigmoid(fitted.intercept + math.fsum(terms))


def agreement(votes: Sequence[Vote]) -> float:
    """Share of the votes on the side of 0.5 that has more, in [0.5, 1]; whatever their weight; 0.0 without a vote."""
    if not votes:
        return 0.0
    above = sum(v.p >= 0.5 for v in votes)
    return max(above, len(votes) - above) / len(votes)
