"""What is wrong with a profile by itself, and with its servers, before its devices are looked at."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec.structs import replace

from configs.memory import served
from configs.serving import Server

if TYPE_CHECKING:
    from configs.model import ModelSpec
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


def server_problems(profile: "Profile", models: "Mapping[str, Sequence[ModelSpec]]") -> Iterator[str]:
    """What is wrong with the servers of a profile.

    Args:
        profile: whose models can be loaded.
        models: of each tier, by its name.
    """
    ports: dict[int, str] = {}
    yield from _never_woken(profile, models)
    for i, tier in enumerate(profile.tiers):
        where, specs = f"tiers[{i}] ({tier.name})", models[tier.name]
        if not served(specs):
            yield from _in_the_worker(where, tier, specs)
            continue
        at_once = tier.threads * tier.max_batch
        if tier.server.in_flight > max(at_once, Server().in_flight):
            yield f"{where}: server.in_flight {tier.server.in_flight}, but threads x max_batch brings {at_once} at most"
        if len(specs) > 1:
            yield f"{where}: a served model is a tier of its own, not one of a panel"
        elif tier.server.url:
            for problem in _elsewhere(tier):
                yield f"{where}: {problem}"
        else:
            port = urlsplit(profile.server_url(tier)).port or 0
            if port in ports:
                yield f"{where}: port {port} is that of tier {ports[port]}: give one of them another server.port"
            ports[port] = tier.name
            if tier.server.lmcache and not tier.server.block_size:
                yield (
                    f"{where}: server.lmcache needs server.block_size, the tokens that it keeps as one: "
                    "32 on a processor, 16 on a GPU"
                )


def _never_woken(profile: "Profile", models: "Mapping[str, Sequence[ModelSpec]]") -> Iterator[str]:
    """A tier is woken by its own items, and by nobody who asks its server about others'."""
    sleeping = {spec.key for tier in profile.tiers if tier.residency == "sleep" for spec in models[tier.name]}
    for i, tier in enumerate(profile.tiers):
        for spec in models[tier.name]:
            asked = spec.options.get("served_model")
            if asked in sleeping:
                yield f"tiers[{i}] ({tier.name}): {spec.key} asks {asked}, whose tier sleeps: nobody would wake it"


def _in_the_worker(where: str, tier: "Tier", specs: "Sequence[ModelSpec]") -> Iterator[str]:
    """A tier without a server; one under a press reads answers as served ones do."""
    reads = any(spec.engine == "kvpress" for spec in specs)
    rest = replace(tier.server, max_outside=Server().max_outside) if reads else tier.server
    if rest != Server():
        what = "max_outside is all that it takes of" if reads else "no"
        yield f"{where}: {specs[0].key} runs in the worker: {what} [tiers.server]"


def _elsewhere(tier: "Tier") -> Iterator[str]:
    """Of a server that somebody else runs the fleet decides nothing."""
    url = tier.server.url
    if not re.fullmatch(r"https?://[^/\s@?#]+/?", url) or not _is_somewhere(url):
        yield f"server.url {url!r} is no http://HOST:PORT"
    ours = {
        "memory_share": tier.memory_share,
        "tensor_parallel": tier.tensor_parallel > 1,
        'residency = "sleep"': tier.residency == "sleep",
        "device": tier.device != "cpu",
        "precision": tier.precision != "auto",
    }
    # How it is asked is the fleet's.
    asked = {"url", "in_flight", "timeout_s", "sent_px", "max_outside", "start_within_s"}
    for name in sorted(set(Server.__struct_fields__) - asked):
        ours[f"server.{name}"] = getattr(tier.server, name) != getattr(Server(), name)
    for name, set_here in ours.items():
        if set_here:
            yield f"{name} is of a server that the fleet starts, and server.url is somebody else's: give one of them"


def _is_somewhere(url: str) -> bool:
    """Whether a URL's host can be looked up, and its port, if it names one, can be one."""
    try:
        place = urlsplit(url)
        # Refused here as it would be at the first connection: a label that is empty or too long.
        return bool(place.hostname) and bool(str(place.hostname).encode("idna")) and place.port != 0
    except ValueError:
        return False
