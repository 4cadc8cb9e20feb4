"""Where an item goes next: pure functions of the item, its tier and the time."""

import math
from collections.abc import Sequence

from msgspec.structs import replace

from configs.model import Calibrator
from configs.profile import Tier
from routing.messages import Item, Verdict, Vote

#: A vote is never certain: a probability of 0 or 1 would outweigh every other vote for ever.
P_MIN = 1e-6
P_MAX = 1 - P_MIN


def sigmoid(x: float) -> float:
    """The logistic function, without overflow at either end; in (0, 1)."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    e = math.exp(x)
    return e / (1 + e)


def logit(p: float) -> float:
    """Log-odds of p in (0, 1)."""
    return math.log(p / (1 - p))


def calibrate(score: float, calibrator: Calibrator) -> float:
    """P(roadwork) of an engine's raw logit, by Platt scaling, in [P_MIN, 1 - P_MIN].

    Raises:
        ValueError: the score is not a number: the engine is broken, and a vote must not hide it.
    """
    p = sigmoid(calibrator.slope * score + calibrator.intercept)
    if P_MIN <= p <= P_MAX:
        return p
    if p != p:  # noqa: PLR0124 - true of NaN only, and this is the hot path
        raise ValueError("the engine's score is not a number")
    return P_MIN if p < P_MIN else P_MAX


def vote(score: float | None, calibrator: Calibrator, tier: Tier, model: str, latency_ms: float) -> Vote | None:
    """A tier's vote from its engine's raw logit; None when the model abstained."""
    if score is None:
        return None
    return Vote(tier.name, model, calibrate(score, calibrator), tier.weight, latency_ms)


def pool(votes: Sequence[Vote]) -> float | None:
    """P(roadwork) by the weighted mean of log-odds; None without a vote of any weight.

    Symmetric: pooling 1 - p gives 1 - pool(p), which a geometric mean of the p does not. Source: Satopaa et al.,
    Combining multiple probability predictions using a simple logit model, International Journal of Forecasting, 2014.
    """
    weight = math.fsum(v.weight for v in votes)
    if weight <= 0:
        return None
    return sigmoid(math.fsum(v.weight * logit(v.p) for v in votes) / weight)


def decide(item: Item, tier: Tier, next_tier: str | None, now_ms: int, *, overloaded: bool = False) -> Verdict | str:
    """After ``tier`` voted on ``item``: its verdict, or the name of the tier that it climbs to.

    Args:
        item: with this tier's vote, if it did not abstain.
        tier: where the item is.
        next_tier: None for the last tier, which always settles.
        now_ms: Unix time; an item past its deadline settles with the votes that it has.
        overloaded: more waits at the next tier than its mark; an item with a vote settles, one without still climbs.
    """
    votes = item.votes
    p = votes[0].p if len(votes) == 1 and votes[0].weight > 0 else pool(votes)
    if p is not None and (p >= tier.accept_above or p <= tier.accept_below):
        return Verdict(item=item, p=p, tier=tier.name, settled_ms=now_ms)
    if item.deadline_ms and now_ms >= item.deadline_ms:
        return settle_held(item, now_ms, "deadline", tier.name)
    if next_tier is not None:
        if overloaded and p is not None:
            return settle_held(item, now_ms, "overload", tier.name)
        return next_tier
    if p is None:
        return void(item, tier.name, now_ms, "no-vote", "every tier abstained")
    return Verdict(item=item, p=p, tier=tier.name, settled_ms=now_ms)


def settle_held(item: Item, now_ms: int, reason: str, tier: str = "") -> Verdict:
    """A verdict from the votes that the item has, flagged with the reason; a void when it has none."""
    p = pool(item.votes)
    if p is None:
        return void(item, tier or "route", now_ms, reason, "it had no vote yet")
    return Verdict(item=item, p=p, tier=tier or item.votes[-1].tier, reason=reason, settled_ms=now_ms)


def void(item: Item, stop: str, now_ms: int, reason: str, detail: str = "") -> Verdict:
    """The end of an item that cannot be judged."""
    return Verdict(item=item, p=None, tier=stop, reason=reason, detail=detail, settled_ms=now_ms)


def with_vote(item: Item, cast: Vote | None) -> Item:
    """The item with one more vote, its faults and tries forgotten: they were this tier's."""
    return replace(item, votes=(*item.votes, cast) if cast else item.votes, faults=0, tries=0)
