"""A Celery worker around one stop: threads pool, one task, the doorbell's."""

import gc
import socket
import sys
from collections.abc import Callable

import structlog
from celery import Celery, signals

from routing.broker import queue_name, task_name
from workers.stop import Stop

#: Allocations between two collections; a batch's messages are thousands, and none is part of a cycle.
GC_THRESHOLD = 50_000

log = structlog.get_logger(__name__)


def run_celery(app: Celery, stop: Stop, threads: int, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serves a stop until SIGTERM or SIGINT (warm: the claims in hand are settled) or a second SIGINT (at once).

    Args:
        app: the fleet's application.
        stop: what a doorbell starts.
        threads: tasks at once.
        on_ready: called when the worker takes doorbells.
    """

    @app.task(name=task_name(stop.name), ignore_result=True)
    def serve() -> int:
        return stop.serve()

    # Celery's signals hold their receivers weakly: these two live as long as the worker runs, in this frame.
    def ending(**_: object) -> None:
        stop.ending.set()

    def ready(**_: object) -> None:
        # What start-up made stays: the garbage collector need not walk over it for every few thousand messages.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 10)
        on_ready()

    signals.worker_shutting_down.connect(ending)
    signals.worker_ready.connect(ready)
    status = app.start(
        [
            "--quiet",
            "worker",
            "--pool=threads",
            f"--concurrency={threads}",
            f"--queues={queue_name(stop.name)}",
            f"--hostname={stop.name}-{stop.owner.id[:8]}@{socket.gethostname()}",
            "--without-gossip",
            "--without-mingle",
        ]
    )
    if status:
        # Not what a signal asked for: the supervisor should know.
        sys.exit(status)
