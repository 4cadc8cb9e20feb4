"""The servers of a profile's VLM tiers as children of a supervisor.

Servers of one device start one after another, and before the tiers' own workers there: at its start vLLM wants its
share of the memory free, and measures what it uses of it while nobody else takes or gives any back. A server that was
ready once comes back by itself, without end; its tier's items go on meanwhile by the tier's rule (``away``).
"""

import dataclasses
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from msgspec import Struct
from msgspec.structs import replace

from configs.errors import BusyError, ConfigError
from configs.memory import devices_of, served
from configs.profile import Profile, Tier
from ops.child import Child
from ops.lmcache import NOT_THEIRS, lmcache_children
from ops.vllm_lock import LOCK_FILE, require_nobody_starts, started
from ops.vllm_releases import installed_release
from ops.vllm_server import ServerCommand, server_command, vllm_python
from routing.address import ServerAddress

#: A server that starts is asked for its health at most this often, and has so long for the answer.
LOOK_S, ANSWER_S = 1.0, 0.5
#: One that was ready is asked this often, and has so long for the answer; so many looks in vain: it hangs.
SILENT_S, SILENT_LOOKS = 15.0, 3
#: From SIGTERM to SIGKILL: nothing is in flight any more, but a driver takes its time to give back tens of GB.
DRAIN_S = 60.0
#: What stands on a port has so long to say which models it serves.
_MODELS_WITHIN_S = 5.0

#: The line that ends a traceback; vLLM logs those of its engine and workers line by line, each after who says it.
_RAISED = re.compile(r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?[A-Za-z_][\w.]*(?:Error|Exception): \S")
_AFTER_IT = re.compile(r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?  (?!File )\S")
#: Said by those who only saw another one end.
_NOT_THE_CAUSE = ("initialization failed",)
_CAUSE_LINES = 3


class Servers(Struct, frozen=True):
    """What a profile's VLM tiers have for servers."""

    #: Those that the fleet runs, in the order of start.
    children: tuple[Child, ...] = ()
    #: By tier: the child's name, of its own; and where it will be.
    names: dict[str, str] = {}
    starts: dict[str, str] = {}
    #: By tier: the URL, of one that stood there already.
    standing: dict[str, str] = {}
    #: Of those that stand, by tier: `natix-fleet vllm start` runs them here, and wakes those that sleep.
    kept: frozenset[str] = frozenset()

    def before(self, tier: Tier, profile: Profile) -> tuple[str, ...]:
        """The servers that a tier's workers come after: its own; or all on the GPU where its own engines are."""
        if tier.name in self.names:
            return (self.names[tier.name],)
        devices = set(devices_held(profile, tier)) - {"cpu"}
        return tuple(name for at, name in self.names.items() if devices & set(devices_held(profile, profile.tier(at))))

    def notes(self) -> list[str]:
        """For people: what is started, and what is used as it is."""
        logs = {child.name: child.log for child in self.children}
        started = [f"tier {tier}: starts its server, whose log is {logs[name]}" for tier, name in self.names.items()]
        return started + [
            f"tier {tier}: {url} serves its model already and is used as it is" for tier, url in self.standing.items()
        ]


class Health:
    """Asks a server that starts whether it serves; quick, and at most once a second.

    Args:
        url: 200 there: it does.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._looked_s = float("-inf")

    def __call__(self) -> bool:
        """Whether it said so just now."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return False
        try:
            return httpx2.get(self._url, timeout=ANSWER_S, trust_env=False).status_code == httpx2.codes.OK
        except httpx2.RequestError:
            return False
        finally:
            # From the end of the look on: a port that never answers must not slow down all other children.
            self._looked_s = time.monotonic()


class Life:
    """Asks a run of a server that was ready whether it still serves; never waits for the answer.

    A server under load answers late, so it is asked patiently: SILENT_LOOKS looks in a row without an answer, each of
    SILENT_S, are about 45 s.

    Args:
        url: 200 there: it does.
        silent_s: instead of SILENT_S.
    """

    def __init__(self, url: str, silent_s: float = SILENT_S) -> None:
        self._url = url
        self._silent_s = silent_s
        self._looked_s = float("-inf")
        self._look: threading.Thread | None = None
        self._silent = 0

    def __call__(self) -> bool:
        """Whether it answered one of the last looks; False once, then it is given so many again."""
        if self._look and self._look.is_alive():
            return True
        if self._silent >= SILENT_LOOKS:
            self._silent = 0
            return False
        if time.monotonic() - self._looked_s >= self._silent_s:
            self._looked_s = time.monotonic()
            # Of its own: the poll looks after all other children meanwhile.
            self._look = threading.Thread(target=self._ask, name="life", daemon=True)
            self._look.start()
        return True

    def _ask(self) -> None:
        try:
            found = httpx2.get(self._url, timeout=self._silent_s, trust_env=False).status_code == httpx2.codes.OK
        except httpx2.RequestError:
            found = False
        self._silent = 0 if found else self._silent + 1


def devices_held(profile: Profile, tier: Tier) -> tuple[str, ...]:
    """Names of the devices that a tier is on; where the profile lists none, it is on its own."""
    return tuple(device.name for device in devices_of(tier, profile.devices)) or (tier.device,)


def served_tiers(profile: Profile) -> list[Tier]:
    """The tiers whose servers the fleet has to look after."""
    models = profile.models()
    return [tier for tier in profile.tiers if served(models[tier.name]) and not tier.server.url]


def no_servers(profile: Profile) -> ConfigError:
    """Why the fleet has no servers to look after."""
    if any(tier.server.url for tier in profile.tiers):
        return ConfigError(f"profile {profile.name!r}: its servers are somebody else's (server.url)")
    return ConfigError(f"profile {profile.name!r} has no tier that vLLM serves; vlm-cpu has one, and h100x2 several")


def find_servers(
    profile: Profile, folder: Path, ledger: ServerAddress | None = None, lock: Path = LOCK_FILE
) -> Servers:
    """The servers of a profile: a child for each, but where one serves its model already.

    Args:
        profile: the fleet.
        folder: for their logs.
        ledger: the fleet's own server, if it is known: LMCache's blocks may not go there.
        lock: of `natix-fleet vllm start`.

    Raises:
        BusyError: somebody else has the port of one, or looks after it.
        ConfigError: vLLM is not here, or cannot do what a tier asks for.
    """
    tiers = served_tiers(profile)
    if not tiers:
        return Servers()
    python = vllm_python()
    release = installed_release(python)
    commands = {tier.name: server_command(profile, tier, release, python) for tier in tiers}
    standing = {name: one.url for name, one in commands.items() if _stands(name, one)}
    kept = _kept(profile, tiers, standing, lock)
    starts = {name: one.url for name, one in commands.items() if name not in standing}
    require_nobody_starts(starts, lock.parent)
    ours = tuple(tier for tier in profile.tiers if tier.name in starts)
    fewer = replace(profile, tiers=ours)
    children = [endless(child) for child in lmcache_children(fewer, python, folder, ledger)] if ours else []
    caches = tuple(child.name for child in children)
    names: dict[str, str] = {}
    for tier in sorted(ours, key=lambda tier: tier.residency == "sleep"):
        # A tier's worker has the tier's own name. Those that sleep come last: they start on what the others leave.
        name = f"{tier.name}-server"
        held = set(devices_held(profile, tier))
        after = [names[t.name] for t in tiers if t.name in names and held & set(devices_held(profile, t))]
        after += caches if tier.server.lmcache else ()
        children.append(_child(name, commands[tier.name], folder, tuple(after), tier.server.start_within_s))
        names[tier.name] = name
    return Servers(tuple(children), names, starts, standing, kept)


def _kept(profile: Profile, tiers: Sequence[Tier], standing: Mapping[str, str], lock: Path) -> frozenset[str]:
    """Of the tiers with a server that stands, those that `natix-fleet vllm start` looks after here.

    Raises:
        ConfigError: the profile that it runs cannot be read.
    """
    start = started(lock) if standing else None
    if start is None:
        return frozenset()
    theirs = start.profile()
    places = {theirs.server_url(tier): tier for tier in served_tiers(theirs)}
    kept = set()
    for tier in tiers:
        there = places.get(profile.server_url(tier))
        # What waits is looked for in the ledger by the tier's name.
        if tier.name in standing and there and (there.name, there.residency) == (tier.name, tier.residency):
            kept.add(tier.name)
    return frozenset(kept)


def require_wakers(profile: Profile, servers: Servers, *, embedded: bool) -> None:
    """A fleet whose ledger is embedded, and known to nobody else, has the servers of its tiers that sleep itself.

    Raises:
        ConfigError: `natix-fleet vllm start` keeps one, and looks for work in another ledger.
    """
    for tier in profile.tiers:
        if embedded and tier.residency == "sleep" and tier.name in servers.kept:
            raise ConfigError(
                f"tier {tier.name!r} sleeps, and natix-fleet vllm start, which runs its server, cannot see what waits "
                "in this run's own ledger: natix-fleet vllm stop first, or set REDIS_URL for both"
            )


def endless(child: Child) -> Child:
    """The same, but that it never takes the fleet down once it was ready."""
    return dataclasses.replace(child, endless=True)


def _child(name: str, command: ServerCommand, folder: Path, after: tuple[str, ...], start_within_s: float) -> Child:
    return Child(
        name=name,
        argv=command.argv,
        env=command.env,
        without=NOT_THEIRS,
        log=folder / f"{name}.log",
        after=after,
        ready=Health(command.health_url),
        ready_within_s=start_within_s,
        alive=partial(Life, command.health_url),
        drain_s=DRAIN_S,
        endless=True,
        cause=cause,
    )


def cause(lines: Sequence[str]) -> list[str]:
    """From vLLM's output to the lines that say why it ended: the first exception, which all later ones follow from."""
    for i, line in enumerate(lines):
        if _RAISED.match(line) and not any(words in line for words in _NOT_THE_CAUSE):
            rest = lines[i + 1 : i + _CAUSE_LINES]
            return [line, *(more for more in rest if _AFTER_IT.match(more))]
    return []


def _stands(tier: str, command: ServerCommand) -> bool:
    """Whether a server of the tier's model is there already.

    Raises:
        BusyError: something else has its port.
    """
    place = urlsplit(command.url)
    host, port = str(place.hostname), int(place.port or 0)
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    found = models_at(command.url)
    if command.key in found:
        return True
    what = f"a server of {', '.join(found)}" if found else "something that is no VLM server"
    raise BusyError(
        f"tier {tier!r}: its server's port {port} is taken by {what}; end that, or set server.port in the profile"
    )


def models_at(url: str, headers: Mapping[bytes, bytes] | None = None) -> list[str]:
    """Names of the models that a server serves, by its own word; empty: it has none, or does not tell us."""
    try:
        reply = httpx2.get(f"{url}/v1/models", headers=headers, timeout=_MODELS_WITHIN_S, trust_env=False)
        return [str(model["id"]) for model in reply.json()["data"]]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return []
