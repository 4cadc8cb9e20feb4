"""natix-fleet vllm start and stop: a profile's VLM servers by themselves; `up` and `run` use them as they find them."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
import redis
import structlog

from configs.errors import BusyError, ConfigError, FleetError
from configs.profile import load_profile
from ops.child import Event
from ops.fleet import server_children
from ops.interrupts import Interrupts
from ops.lock import holder
from ops.residency_control import Residency
from ops.supervisor import Supervisor
from ops.vllm_children import DRAIN_S, find_servers, no_servers, served_tiers
from ops.vllm_lock import LOCK_FILE, start_lock, started, starting
from routing.address import SERVER_URL_FILE, ServerAddress, address_from_environment
from routing.command import INTERRUPTED

log = structlog.get_logger(__name__)

#: The servers' logs.
FOLDER = LOCK_FILE.parent
_LOOK_EVERY_S = 0.1
#: Servers that wait for each other end one after another.
_STOP_WITHIN_S = 4 * DRAIN_S


def start(profile_name: str) -> None:
    """Supervises a profile's servers until SIGTERM or Ctrl-C; says when each is ready.

    Raises:
        BusyError: servers are started here already, or somebody else has a port.
        ConfigError: the profile has no servers to start, vLLM is not here, a tier cannot sleep, or the ledger's URL is
            wrong.
        FleetError: a server's first start failed; with its cause and its last lines.
    """
    profile = load_profile(profile_name)
    if not served_tiers(profile):
        raise no_servers(profile)
    interrupts = Interrupts()
    ledger = _ledger()
    with ExitStack() as stack:
        stack.enter_context(start_lock(profile_name))
        servers = find_servers(profile, FOLDER, ledger)
        stack.enter_context(starting(servers.starts, f"natix-fleet vllm start --profile {profile_name}"))
        for note in servers.notes():
            click.echo(note, err=True)
        if not servers.children:
            raise ConfigError(f"profile {profile.name!r} has no servers to start here: all of them stand")
        residency = stack.enter_context(Residency(profile, servers, _ledger_server, FOLDER, workers=False))
        supervisor = Supervisor(list(server_children(servers, residency)), interrupts=interrupts)
        residency.tend(supervisor)

        def tend(events: Sequence[Event]) -> None:
            residency.tend(supervisor)
            for event in events:
                log.info("child", name=event.child, what=event.what, detail=event.detail)

        supervisor.run(tend)
    if interrupts.count > 1:
        sys.exit(INTERRUPTED)


def stop(profile_name: str | None) -> None:
    """Ends what ``start`` runs here, and waits for it; nothing where nothing runs.

    Args:
        profile_name: as ``start`` was told; None: whichever it is.

    Raises:
        BusyError: it runs another profile.
        ConfigError: there is no such profile.
        FleetError: it cannot be told, or does not end.
    """
    start = started()
    if start is None:
        click.echo(f"no servers run here ({LOCK_FILE} is free)")
        return
    pid, runs = start.pid, start.profile_name
    if profile_name and not start.runs(profile_name):
        raise BusyError(f"the servers here are those of profile {runs}: natix-fleet vllm stop --profile {runs}")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except OSError as error:
        raise FleetError(f"natix-fleet vllm start (pid {pid}) cannot be told to end: {error.strerror}") from error
    until_s = time.monotonic() + _STOP_WITHIN_S
    while _runs(LOCK_FILE):
        if time.monotonic() > until_s:
            raise FleetError(f"natix-fleet vllm start (pid {pid}) has not ended within {_STOP_WITHIN_S:g} s")
        time.sleep(_LOOK_EVERY_S)
    click.echo(f"the servers have ended (pid {pid})")


def _runs(lock: Path) -> bool:
    try:
        return holder(lock) is not None
    except BusyError:
        # Somebody took it this moment: not the one that was told to end.
        return False


def _ledger() -> ServerAddress | None:
    """The fleet's server; None: nobody names one, and none runs in this folder yet.

    Raises:
        ConfigError: its URL is wrong, or the file that is to hold it cannot be read.
    """
    named = any(os.environ.get(name) for name in ("REDIS_URL", "REDIS_URL_FILE"))
    return address_from_environment() if named or SERVER_URL_FILE.exists() else None


def _ledger_server() -> redis.Redis | None:
    """Asked anew whenever it is lost: each `up` without one has its own. Until there is one, no tier is woken."""
    try:
        ledger = _ledger()
    except ConfigError as error:
        # It was right at the start: the file may come back, and until then this is said as of a server that is away.
        raise redis.exceptions.ConnectionError(str(error)) from error
    return ledger.connect() if ledger else None
