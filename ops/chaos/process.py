"""A process of the campaign: natix-fleet itself, with one failpoint more, inside kombu.

Between the two calls with which kombu takes a message from its queue and writes it down as unacknowledged lies the
window in which plain Celery loses tasks. It is in kombu's code, so the failpoint is put around it here.
"""

from typing import Any

from kombu.transport.virtual.base import Transport

from ops.cli import main
from routing.broker import queue_name
from routing.failpoints import Window, failpoint


def die_popping(prefix: str) -> None:
    """From now on a message of a queue that begins with ``prefix`` passes a failpoint: popped, and not written down."""
    deliver: Any = Transport._deliver  # noqa: SLF001 - there is no hook for it

    def passing_a_failpoint(self: Transport, message: Any, queue: str) -> Any:
        if queue.startswith(prefix):
            failpoint(Window.POP_IN_FLIGHT)
        return deliver(self, message, queue)

    Transport._deliver = passing_a_failpoint  # type: ignore[method-assign] # noqa: SLF001 - see above


if __name__ == "__main__":
    die_popping(queue_name(""))
    main()
