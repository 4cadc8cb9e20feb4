"""What is wrong with a profile by itself, before its models and devices are looked at."""

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.profile import Profile, Tier


def problems(profile: "Profile", stops: Collection[str]) -> Iterator[str]:
    """What is wrong with a profile, whatever its devices and models are.

    Args:
        profile: as it was read.
        stops: names that no tier may have.
    """
    names = [tier.name for tier in profile.tiers]
    for name in names:
        if names.count(name) > 1:
            yield f"two tiers are called {name!r}"
        if name in stops:
            yield f"{name!r} is the name of a stop, not of a tier"
    first = profile.tiers[0]
    if first.max_waiting:
        yield f"tiers[0] ({first.name}): nothing climbs to the first tier, admission bounds it: no max_waiting"
    if first.band:
        yield f"tiers[0] ({first.name}): nothing is known of a photo that comes in: the first tier has no band"
    for i, tier in enumerate(profile.tiers):
        for problem in _tier_problems(tier):
            yield f"tiers[{i}] ({tier.name}): {problem}"
        yield from _gaps(profile.after(tier.name))
    yield from _unheard(profile)


def _tier_problems(tier: "Tier") -> Iterator[str]:
    if tier.accept_below >= tier.accept_above:
        yield f"accept_below {tier.accept_below} must be under accept_above {tier.accept_above}"
    if bool(tier.model) == bool(tier.panel):
        yield 'give it model = "KEY", or a panel, and not both'
    keys = [voter.model for voter in tier.voters]
    if len(set(keys)) < len(keys):
        yield "a model stands twice in its panel"
    if not re.fullmatch(r"cpu|cuda:(\d+|GPU-[0-9a-fA-F-]+)", tier.device):
        yield f"device {tier.device!r} is neither cpu nor cuda:INDEX nor cuda:GPU-UUID"


def _gaps(alternatives: "tuple[Tier, ...]") -> Iterator[str]:
    """Bands side by side must begin at 0 and leave no gap: an item that fits none of them would go nowhere."""
    at = 0.0
    for low, high, name in sorted((*tier.band, tier.name) for tier in alternatives if tier.band):
        if low != at or high <= low:
            yield f"tier {name}: its band [{low}, {high}] does not go on where the one below it ends, at {at}"
        at = high


def _unheard(profile: "Profile") -> Iterator[str]:
    """A profile whose votes move nothing, or whose consensus does not hear them, would end every photo as a void."""
    weights = {voter.model: voter.weight for tier in profile.tiers for voter in tier.voters}
    if profile.consensus is None:
        if not any(weights.values()):
            yield "no vote has a weight above 0, and there is no consensus: every photo would end as no-vote"
        return
    for key in profile.consensus.slopes.keys() | profile.consensus.missing.keys():
        if key not in weights:
            yield f"consensus: no tier has the model {key!r}"
    for key, weight in weights.items():
        if weight and key not in profile.consensus.slopes:
            yield f"consensus: model {key!r} has weight {weight} and no slope: fit anew, or give it weight 0"
