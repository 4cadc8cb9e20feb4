"""A gate that many threads pass together and one passes alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from workers.progress import Progress


class Gate:
    """Who passes alone finds nobody inside, and waits for those who are; meanwhile nobody new comes in.

    It is fair: between two who pass alone, all pass who came meanwhile.

    Args:
        progress: does not watch who waits here; those inside are watched themselves.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._changed = threading.Condition()
        self._coming = 0
        self._inside = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Passes beside others."""
        with self._progress.elsewhere(), self._changed:
            self._coming += 1
            self._changed.wait_for(lambda: not self._alone)
            self._coming -= 1
            self._inside += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Passes with nobody else inside."""
        with self._progress.elsewhere(), self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._coming)
            self._alone = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
