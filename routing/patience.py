"""Waiting out a server that is away: everybody waits and goes on; no verb gives up while its process lives."""

import time
from collections.abc import Callable
from typing import TypeVar

import redis
import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: What a server says, or does not say, while it restarts, fails over, loads, or is out of memory.
PASSING = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.OutOfMemoryError,
)

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


def patiently(verb: Callable[[], T], go_on: Callable[[], bool]) -> T:
    """Asks until the server answers.

    Args:
        verb: may be asked again after a lost reply, as every verb of the ledger.
        go_on: asked before each wait; False: stop waiting.

    Raises:
        redis.RedisError: the server is away and ``go_on`` said no, or the error is not of the passing kind.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return verb()
        except PASSING as error:
            if not go_on():
                raise
            log.warning("waiting for the server", error=str(error), pause_s=pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
