"""Flower, Celery's dashboard, on the loopback interface and behind a password; all secrets go by the environment.

``python -m ops.flower`` is the process itself; ``flower_command`` says how to start it as a child.
"""

import os
import secrets
import sys
from typing import NamedTuple

from celery import Celery

from configs.errors import BusyError
from ops.server import HOST, port_is_free
from routing.address import ServerAddress, address_from_environment
from routing.broker import keep_logging
from routing.logs import configure_logging

DEFAULT_PORT = 5555
USER = "fleet"
#: Tasks in Flower's memory; a task is a doorbell, and its default of 100,000 costs hundreds of MB.
MAX_TASKS = 10_000
PURGE_OFFLINE_WORKERS_S = 600


class FlowerCommand(NamedTuple):
    """How to start Flower, and how to log in once it runs. Its repr holds no secret."""

    argv: list[str]
    #: To be added to the child's environment; holds the server's URL and the password.
    env: dict[str, str]
    url: str
    user: str
    password: str

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
    given = os.environ.get("FLOWER_BASIC_AUTH", "").partition(",")[0]
    user, colon, password = given.partition(":")
    if not (user and colon and password):
        user, password = USER, secrets.token_urlsafe(16)
    env = {
        "REDIS_URL": address.url,
        "FLOWER_BASIC_AUTH": f"{user}:{password}",
        "FLOWER_ADDRESS": HOST,
        "FLOWER_PORT": str(port),
        "FLOWER_PERSISTENT": "false",
        "FLOWER_MAX_TASKS": str(MAX_TASKS),
        "FLOWER_PURGE_OFFLINE_WORKERS": str(PURGE_OFFLINE_WORKERS_S),
        # Flower runs a flowerconfig.py that lies in the working directory, and it would win over all of the above.
        "FLOWER_CONF": os.devnull,
        "FLOWER_UNAUTHENTICATED_API": "false",
    }
    return FlowerCommand([sys.executable, "-m", "ops.flower"], env, f"http://{HOST}:{port}", user, password)


def main() -> None:
    """Runs Flower until SIGTERM, with the options that its environment holds."""
    configure_logging("flower")
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
    app.start(["flower"])


if __name__ == "__main__":
    main()
