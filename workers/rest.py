"""Whether a tier rests: its server sleeps, or is about to, and what is claimed would wait in it for nothing."""

import socket
import threading
import time
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import redis

from routing.ledger import PREFIX
from routing.patience import passing

#: Asked at most this often.
LOOK_S = 0.25
_TIMEOUT_S = 1.0


@cache
def this_host() -> str:
    """One name for all processes that share this one's loopback interface, and so its servers that sleep; no other's.

    That is the machine's boot and the network's namespace. A host's name tells less: clones share one, and containers
    on one network may have several.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/net').stat().st_ino}"
    except OSError:
        # No Linux.
        return socket.gethostname()


def rest_key(tier: str, host: str) -> str:
    """It exists while a tier is told to rest: set before its server is, gone by itself if nobody says so any more.

    The ledger may have several hosts, each with a server of the tier; only the workers beside that server rest.
    """
    return f"{PREFIX}rest:{tier}:{host}"


def in_hand(server: redis.Redis, tier: str) -> set[tuple[bytes, bytes, bytes]]:
    """A tier's batches that somebody holds, each with its owner and the token that it was claimed under."""
    owners: Any = server.hkeys(PREFIX + "owners")
    pipe = server.pipeline(transaction=False)
    for owner in owners:
        pipe.hgetall(f"{PREFIX}own:{owner.decode()}")
    held = [(owner, *one) for owner, batches in zip(owners, pipe.execute(), strict=True) for one in batches.items()]
    for _, batch, _ in held:
        pipe.hget(f"{PREFIX}b:{batch.decode()}", "tier")
    return {one for one, of in zip(held, pipe.execute(), strict=True) if of == tier.encode()}


def sleeping(client: httpx2.Client, url: str) -> bool | None:
    """Whether the server sleeps, by its own word; None: it has none, being away, or without vLLM's dev endpoints.

    Args:
        client: with a short timeout.
        url: the server's.
    """
    try:
        reply = client.get(f"{url}/is_sleeping")
        return bool(reply.json()["is_sleeping"]) if reply.status_code == httpx2.codes.OK else None
    except (httpx2.RequestError, ValueError, KeyError):
        return None


def is_loopback(url: str) -> bool:
    """Whether a server is on this machine, and its dev endpoints out of others' reach."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        # A name: where it leads to is not ours to say.
        return False


class Rest:
    """Of one tier; thread-safe.

    Args:
        server: where the ledger is.
        tier: its name.
        url: of its model's server.
        host: where it is, instead of this one.
    """

    def __init__(self, server: redis.Redis, tier: str, url: str, host: str = "") -> None:
        self._server = server
        self._key = rest_key(tier, host or this_host())
        self._url = url
        # A proxy of the environment is for other hosts.
        self._client = httpx2.Client(timeout=_TIMEOUT_S, trust_env=False)
        self._look = threading.Lock()
        self._looked_s = float("-inf")
        self._rests = False

    def __call__(self) -> bool:
        """Whether it rests, as of the last quarter of a second; while one looks, others take what was seen last."""
        if time.monotonic() - self._looked_s >= LOOK_S and self._look.acquire(blocking=False):
            try:
                self._rests = self._told() or bool(sleeping(self._client, self._url))
            finally:
                self._looked_s = time.monotonic()
                self._look.release()
        return self._rests

    def _told(self) -> bool:
        try:
            return bool(self._server.exists(self._key))
        except redis.RedisError as error:
            if not passing(error):
                raise
            # The claim that follows waits for the server.
            return False
