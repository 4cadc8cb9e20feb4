"""Where an item goes next: pure functions of the item, its tier and the time."""

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from configs.model import Calibrator
from configs.profile import Stack, Tier
from routing.consensus import agreement, pool, sigmoid, stack
from routing.messages import Item, Verdict, Vote

#: A vote is never certain: a probability of 0 or 1 would outweigh every other vote for ever.
P_MIN = 1e-6
P_MAX = 1 - P_MIN


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


def consensus(votes: Sequence[Vote], fitted: Stack | None = None) -> float | None:
    """P(roadwork) of an item's votes: stacked where the profile has a fit and it knows a vote, else pooled."""
    p = stack(votes, fitted) if fitted else None
    if p is not None:
        # Slopes may make it certain; a tier that accepts from 1.0 on settles nothing, whatever they say.
        return min(max(p, P_MIN), P_MAX)
    return votes[0].p if len(votes) == 1 and votes[0].weight > 0 else pool(votes)


def decide(
    item: Item,
    tier: Tier,
    nexts: Sequence[Tier],
    now_ms: int,
    *,
    overloaded: Collection[str] = (),
    fitted: Stack | None = None,
) -> Verdict | str:
    """After ``tier`` voted on ``item``: its verdict, or the name of the tier that it climbs to.

    Args:
        item: with this tier's votes, if it did not abstain.
        tier: where the item is.
        nexts: Profile.after(tier): none for the last tier, which always settles.
        now_ms: Unix time; an item past its deadline settles with the votes that it has.
        overloaded: tiers where more waits than their mark; an item with a vote settles before them, one without climbs.
        fitted: the profile's consensus.
    """
    p = consensus(item.votes, fitted)
    if p is not None and (p >= tier.accept_above or p <= tier.accept_below) and _agreed(item.votes, tier):
        return Verdict(item=item, p=p, tier=tier.name, settled_ms=now_ms)
    if item.deadline_ms and now_ms >= item.deadline_ms:
        return settle_held(item, now_ms, "deadline", tier.name, fitted)
    way = _way(p, nexts)
    if way is not None:
        if p is not None and way in overloaded:
            return settle_held(item, now_ms, "overload", tier.name, fitted)
        return way
    if p is None:
        return void(item, tier.name, now_ms, "no-vote", "every tier abstained")
    return Verdict(item=item, p=p, tier=tier.name, settled_ms=now_ms)


def _agreed(votes: Sequence[Vote], tier: Tier) -> bool:
    return not tier.agree or agreement([v for v in votes if v.tier == tier.name]) >= tier.agree


def _way(p: float | None, nexts: Sequence[Tier]) -> str | None:
    """Where an item climbs to; by its certainty where tiers have bands: one that no vote is known of is not certain."""
    certainty = 0.0 if p is None else abs(2 * p - 1)
    for tier in nexts:
        if tier.band is None or tier.band[0] <= certainty < tier.band[1]:
            return tier.name
    return None


def settle_held(item: Item, now_ms: int, reason: str, tier: str = "", fitted: Stack | None = None) -> Verdict:
    """A verdict from the votes that the item has, flagged with the reason; a void when it has none."""
    p = consensus(item.votes, fitted)
    if p is None:
        return void(item, tier or "route", now_ms, reason, "it had no vote yet")
    return Verdict(item=item, p=p, tier=tier or item.votes[-1].tier, reason=reason, settled_ms=now_ms)


def void(item: Item, stop: str, now_ms: int, reason: str, detail: str = "") -> Verdict:
    """The end of an item that cannot be judged."""
    return Verdict(item=item, p=None, tier=stop, reason=reason, detail=detail, settled_ms=now_ms)


def with_votes(item: Item, cast: Sequence[Vote]) -> Item:
    """The item with more votes, its faults and tries forgotten: they were this tier's."""
    return replace(item, votes=(*item.votes, *cast), faults=0, tries=0)
