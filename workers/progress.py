"""Progress of work in hand: one clock a thread, so that one that hangs is seen beside others that work."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """When each thread's work in hand last moved. A heart that beats beside a hung device would keep its batches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved_s: dict[int, float] = {}

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """This thread has work, and is watched."""
        self._start()
        try:
            yield
        finally:
            self._forget()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """This thread waits for another that is watched itself: however long the queue, it does not stall."""
        watched = self._forget()
        try:
            yield
        finally:
            if watched:
                self._start()

    def moved(self) -> None:
        """This thread got something done: a photo decoded, a verb answered, or a server asked that is away."""
        me = threading.get_ident()
        with self._lock:
            if me in self._moved_s:
                self._moved_s[me] = time.monotonic()

    def stalled_s(self) -> float:
        """Seconds since the work moved that stands still the longest; 0 without any."""
        with self._lock:
            oldest_s = min(self._moved_s.values(), default=None)
        return 0.0 if oldest_s is None else time.monotonic() - oldest_s

    def _start(self) -> None:
        with self._lock:
            self._moved_s[threading.get_ident()] = time.monotonic()

    def _forget(self) -> bool:
        with self._lock:
            return self._moved_s.pop(threading.get_ident(), None) is not None
