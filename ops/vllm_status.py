"""natix-fleet vllm status: each server of a profile, by its own word."""

import os
import re
import sys
from pathlib import Path

import click
import httpx2
import msgspec
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from configs.errors import ServerError
from configs.memory import served
from configs.profile import Profile, Tier
from ops.report_text import LOG_WIDTH
from ops.run import RUN_FOLDER
from ops.up import UP_FOLDER
from ops.vllm_children import models_at, no_servers
from ops.vllm_lock import LOCK_FILE
from ops.wakes import Taken, median_s, read_wakes
from workers.rest import is_loopback, sleeping
from workers.served import KEY_VARIABLE

_ANSWER_S = 5.0
#: Where servers of this folder's fleets note their wakes.
_FOLDERS = (LOCK_FILE.parent, UP_FOLDER, RUN_FOLDER)
#: vLLM's names; a counter's may end in _total.
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_CACHES = {"prefix": "vllm:prefix_cache", "photos": "vllm:mm_cache"}


class ServerStatus(Struct, frozen=True):
    """One server at one moment. None: it does not say."""

    tier: str
    url: str
    model: str
    healthy: bool
    asleep: bool | None
    #: Requests in its engines, and before them.
    running: int | None
    waiting: int | None
    #: Share of what was looked for in a cache that was found, by cache; of tokens, and of photos.
    hits: dict[str, float | None]
    #: Seconds of the last wake of a tier that sleeps, and of the median of the last hundred.
    last_wake_s: float | None
    median_wake_s: float | None


def print_servers(profile: Profile, *, as_json: bool) -> None:
    """Prints them; ends with status 69 unless all are healthy.

    Raises:
        ConfigError: there are none.
    """
    if not _served(profile):
        raise no_servers(profile)
    found = [server_status(tier, profile.server_url(tier), key) for tier, key in _served(profile)]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        _show(found)
    if not all(one.healthy for one in found):
        sys.exit(ServerError.exit_status)


def server_status(tier: Tier, url: str, key: str, folders: tuple[Path, ...] = _FOLDERS) -> ServerStatus:
    """Asks one server.

    Args:
        tier: whose it is.
        url: where it is.
        key: of the model that it should serve.
        folders: where its wakes may be noted.
    """
    headers = _login(tier)
    with httpx2.Client(headers=headers, timeout=_ANSWER_S, trust_env=False) as client:
        # Another model there is as bad as nothing.
        healthy = _text(client, f"{url}/health") is not None and key in models_at(url, headers)
        text = _text(client, f"{url}/metrics") or ""
        asleep = sleeping(client, url) if is_loopback(url) else None
    taken = next((found for folder in folders if (found := read_wakes(folder).get(tier.name))), Taken())
    running, waiting = total(text, _RUNNING), total(text, _WAITING)
    return ServerStatus(
        tier=tier.name,
        url=url,
        model=key,
        healthy=healthy,
        asleep=asleep,
        running=None if running is None else int(running),
        waiting=None if waiting is None else int(waiting),
        hits={name: _share(text, prefix) for name, prefix in _CACHES.items()},
        last_wake_s=taken.wake[-1] if taken.wake else None,
        median_wake_s=median_s(taken.wake),
    )


def total(text: str, name: str) -> float | None:
    """A metric summed over its labels; None: it is not there.

    Args:
        text: in Prometheus' format.
        name: without the ending of a counter.
    """
    values = re.findall(rf"^{re.escape(name)}(?:_total)?(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values)) if values else None


def _share(text: str, prefix: str) -> float | None:
    asked, found = total(text, f"{prefix}_queries"), total(text, f"{prefix}_hits")
    return round(found / asked, 4) if asked and found is not None else None


def _text(client: httpx2.Client, url: str) -> str | None:
    try:
        reply = client.get(url)
    except httpx2.RequestError:
        return None
    return reply.text if reply.status_code == httpx2.codes.OK else None


def _login(tier: Tier) -> dict[bytes, bytes]:
    """As the tier's workers have it; the fleet's own servers want none, and are told none."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    # Bytes: a key that no header may have is a server that does not answer, and no fault of ours.
    return {b"Authorization": f"Bearer {key}".encode()} if key and tier.server.url else {}


def _served(profile: Profile) -> list[tuple[Tier, str]]:
    models = profile.models()
    return [(tier, models[tier.name][0].key) for tier in profile.tiers if served(models[tier.name])]


def _show(found: list[ServerStatus]) -> None:
    table = Table("tier", "model", "url", "state", "running", "waiting", "found", "wake s", box=SIMPLE_HEAD)
    for one in found:
        state = "away" if not one.healthy else "asleep" if one.asleep else "awake"
        hits = ", ".join(f"{name} {share:.0%}" for name, share in one.hits.items() if share is not None)
        wakes = [f"{s:.1f}" for s in (one.last_wake_s, one.median_wake_s) if s is not None]
        counts = ["" if n is None else str(n) for n in (one.running, one.waiting)]
        table.add_row(one.tier, one.model, one.url, state, *counts, hits, " / ".join(wakes))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(table)
    console.print("found: share of prompt tokens, and of photos, that a cache had; wake s: the last one / the median")
