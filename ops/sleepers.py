"""Which tiers of a profile sleep, as far as they are ours to wake."""

import httpx2

from configs.errors import ConfigError
from configs.profile import Profile
from ops.sleeping_tier import SleepingTier
from ops.vllm_children import Servers, devices_held, served_tiers
from workers.rest import is_loopback, sleeping


def sleepers(profile: Profile, servers: Servers, client: httpx2.Client, *, workers: bool) -> list[SleepingTier]:
    """The tiers that sleep.

    Args:
        profile: the fleet.
        servers: of its tiers, where they run under this supervisor, or stand already.
        client: asks those that stand.
        workers: whether the supervisor has the tiers' workers too.

    Raises:
        ConfigError: a tier cannot sleep here.
    """
    served = {tier.name for tier in served_tiers(profile)}
    sleep = [tier for tier in profile.tiers if tier.residency == "sleep" and not tier.server.url]
    #: Whoever wakes the servers on a device must wake the other tiers there.
    others = servers.kept if workers else served
    apart = {name: devices_held(profile, profile.tier(name)) for name in others if profile.tier(name) in sleep}
    found: list[SleepingTier] = []
    for tier in sleep:
        devices = frozenset(devices_held(profile, tier))
        url = servers.standing.get(tier.name, "")
        if tier.name in servers.names:
            found.append(SleepingTier(tier, devices, profile.server_url(tier), servers.names[tier.name]))
        elif tier.name not in served:
            if any(devices & set(there) for there in apart.values()):
                raise ConfigError(
                    f"tier {tier.name!r} sleeps beside tiers with servers: those must be started by the natix-fleet "
                    "up or run that has its workers, not by natix-fleet vllm start"
                )
            if workers:
                found.append(SleepingTier(tier, devices, after=servers.before(tier, profile)))
        elif tier.name not in servers.kept:
            if not is_loopback(url) or sleeping(client, url) is None:
                raise ConfigError(
                    f"tier {tier.name!r} sleeps, and its server at {url} cannot: start it with --enable-sleep-mode "
                    "and VLLM_SERVER_DEV_MODE=1 on 127.0.0.1, or let natix-fleet start it"
                )
            found.append(SleepingTier(tier, devices, url))
    return found
