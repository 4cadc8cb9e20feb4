"""Waiting out a server, a store or a disk that is away or full: all wait and go on; no verb gives up by itself."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

import redis
import structlog

from configs.errors import DiskError, ServerError

log = structlog.get_logger(__name__)

T = TypeVar("T")


class StoreAwayError(Exception):
    """The photo store does not answer: a stale mount, an object store that is away."""


#: What a server says, or does not say, while it restarts, fails over, loads, or is out of memory; the verdict database
#: (workers.verdict_connection) while it is locked or away, or its disk is full.
PASSING = (
    StoreAwayError,
    DiskError,
    ServerError,
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.MasterDownError,
    redis.exceptions.OutOfMemoryError,
)

#: The same in words: redis-py has no class for a master without replicas, nor for one that cannot write its file. They
#: need not stand at the head: a pipeline says first which of its commands was refused.
PASSING_WORDS = ("NOREPLICAS", "MISCONF", "BUSY ")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
#: An outage may last for hours.
_SAY_EVERY_S = 10.0


def passing(error: Exception) -> bool:
    """Whether waiting helps."""
    return isinstance(error, PASSING) or any(word in str(error) for word in PASSING_WORDS)


def patiently(verb: Callable[[], T], go_on: Callable[[], bool]) -> T:
    """Asks until the server answers.

    Args:
        verb: may be asked again after a lost reply, as every verb of the ledger and every write of verdicts.
        go_on: asked before each wait; False: stop waiting.

    Raises:
        redis.RedisError, StoreAwayError, DiskError, ServerError: ``go_on`` said no, or the error is not of the passing
            kind.
    """
    pause_s = _FIRST_PAUSE_S
    begun_s, said_s = time.monotonic(), -math.inf
    while True:
        try:
            return verb()
        except (redis.RedisError, StoreAwayError, DiskError, ServerError) as error:
            if not passing(error) or not go_on():
                raise
            now_s = time.monotonic()
            if now_s - said_s > _SAY_EVERY_S:
                said_s = now_s
                log.warning("waiting", error=str(error), waited_s=round(now_s - begun_s, 1))
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
