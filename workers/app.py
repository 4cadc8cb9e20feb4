"""A Celery worker around one stop: threads pool, one task, the doorbell's."""

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import structlog
from celery import Celery, signals

from routing.broker import queue_name, task_name
from routing.command import INTERRUPTED
from routing.owner import STALLED
from workers.stop import Stop

#: Allocations between two collections; a batch's messages are thousands, and none is part of a cycle.
GC_THRESHOLD = 50_000

#: Told to end, a process has this long for the claims in hand; then it gives them back, for which it has LEAVE_S more.
#: Together they are less than a supervisor's drain_s.
DRAIN_S = 20.0
LEAVE_S = 5.0

log = structlog.get_logger(__name__)


def run_celery(app: Celery, stop: Stop, threads: int, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serves a stop until SIGTERM, SIGHUP or SIGINT: the claims in hand are settled, or given back after DRAIN_S.

    A SIGINT after that ends the process at once, with status 130; a second SIGTERM changes nothing: a service manager
    tells every process of a group, and the supervisor among them tells its children again.

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
        # Inside Celery's handler, which has just set its own for the next Ctrl-C: that one waits for running tasks.
        signal.signal(signal.SIGINT, _end_at_once)
        stop.ending.set()

    def ready(**_: object) -> None:
        # Celery's own would run this command again after the drain.
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
        # What start-up made stays: the garbage collector need not walk over it for every few thousand messages.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 10)
        on_ready()

    # Not started by the handler: that may run in the middle of another thread's start, which holds a lock.
    threading.Thread(target=_bound_drain, args=(stop,), name="drain", daemon=True).start()
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
    if status and not stop.ending.is_set():
        # Not what a signal asked for: the supervisor should know. What one did ask for, Celery calls 1 after Ctrl-C.
        sys.exit(status)


def _end_at_once(*_: object) -> None:
    # Not an exception: threads that work would be waited for. Whoever reaps this process's batches does them.
    os._exit(INTERRUPTED)


def _bound_drain(stop: Stop) -> None:
    """Hurries the end; ends this process when it does not end by itself: a device hangs, a server is silent."""
    stop.ending.wait()
    stop.hurry()
    time.sleep(DRAIN_S)
    log.critical("not drained, ending this process", drain_s=DRAIN_S)
    # By a thread: without a server it tries for much longer.
    leaving = threading.Thread(target=stop.owner.stop, name="leave", daemon=True)
    leaving.start()
    leaving.join(LEAVE_S)
    os._exit(STALLED)
