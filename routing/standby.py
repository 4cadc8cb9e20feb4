"""A standby: where ready work waits and no task comes, an idle process serves its stop without a doorbell.

Doorbells may be refused (a server out of memory takes none), and Celery's consumer may be deaf for a while after an
outage: it waits up to 30 s between two tries to connect. Progress needs neither.
"""

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

#: Ticks in a row at which ready work waits and this process does nothing: a doorbell that works takes less than one.
PATIENCE_TICKS = 3


class Standby:
    """One stop's, in one process.

    Args:
        stop: its name in the ledger.
        serve: works until the stop is dry; how many batches it worked.
        rests: whether ready work waits by choice.
    """

    def __init__(self, stop: str, serve: Callable[[], int], rests: Callable[[], bool] = lambda: False) -> None:
        self.stop = stop
        self._serve = serve
        self._rests = rests
        self._rested = False
        self._looked = False
        self._idle_ticks = 0
        self._ending = False
        self._thread: threading.Thread | None = None

    def looked(self) -> None:
        """Somebody in this process asked for work: its doorbells work."""
        self._looked = True

    def tick(self, ready: int, *, busy: bool) -> None:
        """Once a second.

        Args:
            ready: batches that wait at the stop.
            busy: this process has work in hand.
        """
        waits = ready > 0 and not busy
        rested, self._rested = self._rested, waits and self._rests()
        # Who rested let its doorbells pass, and whoever wakes it rings none.
        woken = rested and waits and not self._rested
        idle = waits and not self._looked and not self._rested
        self._looked = False
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        deaf = self._idle_ticks >= PATIENCE_TICKS
        if not (woken or deaf) or self._ending or (self._thread and self._thread.is_alive()):
            return
        if deaf:
            log.warning("no doorbell comes, serving without", stop=self.stop, ready=ready)
        self._thread = threading.Thread(target=self._serve_dry, name="standby", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Waits for what is in hand; to be called when ``serve`` was told to end."""
        self._ending = True
        if self._thread:
            self._thread.join()

    def _serve_dry(self) -> None:
        try:
            while not self._ending and self._serve():
                pass
        except Exception:
            # As a task's failure: it is logged, what was in hand is ready again, and the next doorbell or tick goes on.
            log.exception("serving without a doorbell failed", stop=self.stop)
