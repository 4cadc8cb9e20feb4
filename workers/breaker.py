"""A circuit breaker: whether a server that failed is asked again. It knows no clock and no network."""

from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed, all may ask. Open, nobody does. Half-open, one does, and what becomes of it decides for all.

    Source: M. Nygard, Release It!, 2007, "Circuit Breaker".

    Args:
        failures: one after another, without an answer between them, that open it.
        open_s: from its opening to the probe; after each probe that fails twice as long.
        open_max_s: and never longer than this.
    """

    def __init__(self, failures: int = 5, open_s: float = 1.0, open_max_s: float = 15.0) -> None:
        self._most_failures = failures
        self._first_open_s = self._open_s = open_s
        self._open_max_s = open_max_s
        self._failures = 0
        self._until_s = 0.0
        self.state: State = "closed"

    def admits(self, now_s: float) -> bool:
        """Whether one may ask now. Who is admitted says what became of it, by one of the verbs below, in any case."""
        if self.state == "closed":
            return True
        if self.state == "open" and now_s >= self._until_s:
            self.state = "half-open"
            return True
        return False

    def answered(self) -> None:
        """The server answered, whatever it said."""
        self.state = "closed"
        self._failures = 0
        self._open_s = self._first_open_s

    def failed(self, now_s: float) -> None:
        """The server did not answer, or said that it cannot."""
        if self.state == "open":
            # Asked before it opened.
            return
        self._failures += 1
        if self.state == "half-open":
            self._open_s = min(2 * self._open_s, self._open_max_s)
        elif self._failures < self._most_failures:
            return
        self.state = "open"
        self._until_s = now_s + self._open_s
