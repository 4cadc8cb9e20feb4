"""The signals that end a command: the first one drains, a Ctrl-C after it is at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP: the first of them, and each SIGINT after it.

    A second SIGTERM is no second wish: a service manager tells every process of a group, and ``timeout`` tells its
    child twice.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def heeded(self) -> Iterator["Interrupts"]:
        """Takes the signals over; for the main thread."""

        # Only counted: the handler may run in the middle of anything.
        def note(number: int, _frame: FrameType | None) -> None:
            if number == signal.SIGINT or self.count == 0:
                self.count += 1

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before: dict[signal.Signals, Any] = {number: signal.signal(number, note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                # Who was interrupted is about to end: one more Ctrl-C must not change the status that it ends with.
                signal.signal(number, signal.SIG_IGN if self.count and number == signal.SIGINT else handler)
