"""Runs LMCache for as long as the server of its blocks answers: python -m ops.lmcache_process HOST PORT COMMAND...

LMCache's adapter for Redis (0.5.6) never connects again: once its server was away, every store fails until LMCache
itself is started anew. So it ends when its server does, with the status of a server that is away, and whoever
supervises it starts it again. The login is in the environment, as the adapter reads it.
"""

import os
import signal
import subprocess
import sys
import time

import click
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from configs.errors import FleetError, ServerError
from ops.tied import tied
from routing.command import run_command

ASK_EVERY_S, ANSWER_WITHIN_S = 1.0, 5.0
#: From SIGTERM to SIGKILL.
END_WITHIN_S = 20.0


# From HOST on all is an argument, the flags of the command too.
@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, add_help_option=False
)
@click.argument("host")
@click.argument("port", type=int)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(host: str, port: int, command: tuple[str, ...]) -> None:
    """Runs COMMAND until SIGTERM, its own end, or the server's.

    Raises:
        ServerError: the server's connection broke, or there was none.
        FleetError: the command ended by itself.
    """
    ending: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: ending.append(n))
    login = {"username": os.environ.get("LMCACHE_RESP_USERNAME"), "password": os.environ.get("LMCACHE_RESP_PASSWORD")}
    client = redis.Redis(
        host,
        port,
        username=login["username"] or None,
        password=login["password"] or None,
        socket_timeout=ANSWER_WITHIN_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        # One connection, like LMCache's: one from a pool would be made anew unseen, where the server came back at once.
        single_connection_client=True,
    )
    with client:
        _require(client, host, port)
        process = subprocess.Popen(tied(command), stdin=subprocess.DEVNULL)  # noqa: S603 - ops.lmcache wrote it
        try:
            while not ending and process.poll() is None:
                time.sleep(ASK_EVERY_S)
                _require(client, host, port)
        finally:
            _end(process)
    if not ending:
        raise FleetError(f"LMCache ended with status {process.returncode}; its own lines are above")


def _require(client: redis.Redis, host: str, port: int) -> None:
    try:
        client.ping()
    except redis.exceptions.TimeoutError:
        # It is slow, and LMCache's connections to it may be sound; one that is gone refuses the next call.
        return
    except redis.exceptions.RedisError as error:
        raise ServerError(f"the server of LMCache's blocks, {host}:{port}, is away: {error}") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    run_command(run, f"{sys.executable} -m ops.lmcache_process")
