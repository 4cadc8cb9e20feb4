"""A deadline for all requests that are made within a context, however many they become."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_until_s: ContextVar[float] = ContextVar("until_s", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """All requests in this context have so long, together; less where one around it says so."""
    token = _until_s.set(min(_until_s.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _until_s.reset(token)


def deadline_s() -> float:
    """When the requests of this context must have ended, on the monotonic clock; inf: nobody said."""
    return _until_s.get()
