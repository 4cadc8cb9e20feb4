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
    """

    def __init__(self, stop: str, serve: Callable[[], int]) -> None:
        self.stop = stop
        self._serve = serve
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
        idle = ready > 0 and not busy and not self._looked
        self._looked = False
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        if self._idle_ticks < PATIENCE_TICKS or self._ending or (self._thread and self._thread.is_alive()):
            return
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
