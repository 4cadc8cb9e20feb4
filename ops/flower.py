"""Flower, Celery's dashboard, on the loopback interface and behind a password; all secrets go by the environment.

``python -m ops.flower`` is the process itself; ``flower_command`` says how to start it as a child.
"""

import os
import secrets
import sys
from typing import NamedTuple

import click
from celery import Celery

from configs.errors import BusyError, ConfigError
from ops.server import HOST, port_is_free
from routing.address import ServerAddress, address_from_environment
from routing.broker import keep_logging
from routing.command import run_command
from routing.logs import configure_logging

DEFAULT_PORT = 5555
USER = "fleet"
#: Tasks in Flower's memory; a task is a doorbell, and its default of 100,000 costs hundreds of MB.
MAX_TASKS = 10_000
PURGE_OFFLINE_WORKERS_S = 600

#: Flower reads its environment, then a file, then its arguments, and the last wins: what must hold stands here.
_FIXED = (
    # /metrics and /healthcheck answer without a login. A Unix socket would be open to everybody on the machine.
    f"--address={HOST}",
    "--unix_socket=",
    # A flowerconfig.py in the working directory would be run.
    f"--conf={os.devnull}",
    # It shows. A worker that it stopped would come back, one that it took off its queue would go deaf unseen.
    "--read_only=true",
    # Tracebacks are for the log, not for a page.
    "--debug=false",
    "--persistent=false",
    f"--max_tasks={MAX_TASKS}",
    f"--purge_offline_workers={PURGE_OFFLINE_WORKERS_S}",
)


class FlowerCommand(NamedTuple):
    """How to start Flower, and how to log in once it runs. Its repr holds no secret."""

    argv: list[str]
    #: To be added to the child's environment; holds the server's URL and the password.
    env: dict[str, str]
    url: str
    user: str
    password: str
    #: The password is the environment's, not made up here.
    given: bool

    @property
    def greeting(self) -> str:
        """Where it is and how to log in, for a person; a password that somebody chose is not repeated."""
        return f"Flower: {self.url} (user {self.user}, password {'as given' if self.given else self.password})"

    def __repr__(self) -> str:
        return f"FlowerCommand({self.url!r}, user={self.user!r})"


def flower_command(address: ServerAddress, port: int = DEFAULT_PORT) -> FlowerCommand:
    """The child that shows this server's queues and workers.

    A login in FLOWER_BASIC_AUTH (user:password) is kept, else one is made up. ``/metrics`` and ``/healthcheck`` answer
    without a login, which is why it listens on the loopback interface only.

    Raises:
        BusyError: somebody listens on the port.
    """
    if not port_is_free(port):
        raise BusyError(
            f"Flower's port {port} is taken: stop what uses it, or choose another with "
            "--flower-port (make: FLOWER_PORT=5556), or none with --flower-port 0 (make: FLOWER_PORT=0)"
        )
    given = _given_login()
    user, password = given or (USER, secrets.token_urlsafe(16))
    env = {
        "REDIS_URL": address.url,
        "FLOWER_BASIC_AUTH": f"{user}:{password}",
        "FLOWER_PORT": str(port),
        "FLOWER_UNAUTHENTICATED_API": "false",
    }
    url = f"http://{HOST}:{port}"
    return FlowerCommand([sys.executable, "-m", "ops.flower"], env, url, user, password, given is not None)


def _given_login() -> tuple[str, str] | None:
    """User and password of FLOWER_BASIC_AUTH, the first if there are several."""
    user, _, password = os.environ.get("FLOWER_BASIC_AUTH", "").partition(",")[0].partition(":")
    return (user, password) if user and password else None


def main() -> None:
    """Runs Flower until SIGTERM, with the port and the login that its environment holds.

    Raises:
        ConfigError: there is no login, or no server is known.
    """
    configure_logging("flower")
    if not _given_login():
        raise ConfigError("Flower without a login: set FLOWER_BASIC_AUTH (user:password), or use natix-fleet flower")
    address = address_from_environment()
    options = address.broker_options["transport_options"]
    # Flower's queue page speaks asyncio and brings a retry of its own, but only where none is set.
    options.get("sentinel_kwargs", {}).pop("retry", None)
    keep_logging()
    app = Celery("natix-fleet")
    app.conf.update(
        broker_url=address.broker_url,
        broker_transport_options=options,
        broker_use_ssl=address.broker_options["use_ssl"],
        broker_connection_retry_on_startup=True,
    )
    app.start(["flower", *_FIXED])


if __name__ == "__main__":
    run_command(click.command(main), "python -m ops.flower")
