"""Long-lived processes: a supervised fleet, and for development the embedded server and Flower each by themselves."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click
import redis
import structlog

from configs.errors import DiskError
from configs.profile import load_profile
from ops.child import Event
from ops.fleet import Overlap, fleet_children, require_engines
from ops.flower import flower_command
from ops.flower import main as run_flower
from ops.interrupts import Interrupts
from ops.lock import RunLock
from ops.residency_control import Residency
from ops.restart import RestartRequests
from ops.serve import DATABASE, database_url
from ops.server import EmbeddedServer
from ops.supervisor import Supervisor
from ops.vllm_children import find_servers
from ops.vllm_lock import starting
from routing.address import SERVER_URL_FILE, ServerAddress, address_from_environment, is_live
from routing.command import INTERRUPTED
from routing.retry import ServerRetry
from routing.server_check import require_server

log = structlog.get_logger(__name__)

#: Logs and ready files of the supervised fleet.
UP_FOLDER = Path("var/up")
SERVER_FOLDER = Path("var/server")


def up(profile_name: str, flower_port: int | None, overlap: Overlap = "cpu") -> None:
    """Supervises a profile's processes until SIGTERM or Ctrl-C; the server is the environment's, or an embedded one.

    Args:
        profile_name: a profile's name or path.
        flower_port: where Flower listens; None: without Flower.
        overlap: whose successors come up beside them when the fleet is restarted.

    Raises:
        FleetError: the profile, the server or a port is not as it must be, or a process was given up.
    """
    profile = load_profile(profile_name)
    require_engines(profile)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Until the supervisor takes them over: the embedded server and the file with its URL go as at any other end.
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    requests, interrupts = RestartRequests(UP_FOLDER), Interrupts()
    with ExitStack() as stack:
        stack.enter_context(
            RunLock(UP_FOLDER / "lock", command=f"natix-fleet up --profile {profile_name}", what="fleet")
        )
        address, server = _server(stack)
        require_server(address.connect())
        flower = flower_command(address, flower_port) if flower_port else None
        env = {DATABASE: database_url(profile)}
        servers = find_servers(profile, UP_FOLDER, address)
        stack.enter_context(starting(servers.starts, f"natix-fleet up --profile {profile_name}"))
        residency = stack.enter_context(Residency(profile, servers, address.connect, UP_FOLDER))
        children = fleet_children(profile, profile_name, address, UP_FOLDER, env, flower, overlap, servers, residency)
        supervisor = Supervisor(children, interrupts=interrupts)
        residency.tend(supervisor)
        for note in servers.notes():
            click.echo(note, err=True)
        click.echo(f"fleet {profile.name!r} on {address.redacted}; logs in {UP_FOLDER}; Ctrl-C drains", err=True)
        if flower:
            click.echo(flower.greeting, err=True)

        def tend(events: Sequence[Event]) -> None:
            if server:
                server.revive()
            for event in events:
                log.info("child", name=event.child, what=event.what, detail=event.detail)
            residency.tend(supervisor)
            requests.tell(events)
            if requests.take():
                supervisor.roll()

        supervisor.run(tend)
    if interrupts.count > 1:
        sys.exit(INTERRUPTED)


def _server(stack: ExitStack) -> tuple[ServerAddress, EmbeddedServer | None]:
    """The environment's server, or an embedded one that is ours to look after."""
    named = any(os.environ.get(name) for name in ("REDIS_URL", "REDIS_URL_FILE"))
    if named or SERVER_URL_FILE.exists():
        address = address_from_environment()
        if named or _is_there(address):
            return address, None
        log.warning("its server is gone: a new one takes its place", file=str(SERVER_URL_FILE))
    server = _embedded(stack, SERVER_FOLDER, 0, "always")
    return server.address, server


def _is_there(address: ServerAddress) -> bool:
    """Whether the server that left its URL still runs: one that was killed could not take the file away."""
    try:
        with address.connect(retry=ServerRetry(within_s=0)) as client:
            client.ping()
    except redis.exceptions.BusyLoadingError:
        return True
    # A refused login too: its password was its own, so somebody else has the port now.
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        return False
    return True


def _embedded(stack: ExitStack, folder: Path, port: int, fsync: Literal["always", "everysec"]) -> EmbeddedServer:
    """An embedded server that other commands of this folder find by var/server/url, as long as it runs."""
    server = EmbeddedServer(folder, port, fsync)
    if not is_live(SERVER_URL_FILE):
        # What a killed server left would lead whoever waits for this one astray.
        _forget_url()
    stack.enter_context(server)
    server.write_url(SERVER_URL_FILE)
    stack.callback(_forget_url)
    return server


def _forget_url() -> None:
    try:
        SERVER_URL_FILE.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"cannot remove {SERVER_URL_FILE}: {error.strerror}") from error


def serve_server(folder: Path, port: int, fsync: Literal["always", "everysec"]) -> None:
    """The embedded server until SIGTERM or Ctrl-C.

    Raises:
        FleetError: the port is taken, or its folder cannot be written.
    """
    ending: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: ending.append(n))
    with ExitStack() as stack:
        server = _embedded(stack, folder, port, fsync)
        click.echo(f"server on {server.address.redacted}; its URL is in {SERVER_URL_FILE}", err=True)
        while not ending:
            server.revive()
            time.sleep(0.2)


def serve_flower(port: int) -> None:
    """Flower until SIGTERM or Ctrl-C, with the login in FLOWER_BASIC_AUTH or one made up.

    Raises:
        FleetError: no server is known, or the port is taken.
    """
    flower = flower_command(address_from_environment(), port)
    os.environ.update(flower.env)
    click.echo(flower.greeting, err=True)
    run_flower()
