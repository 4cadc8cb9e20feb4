"""What the claiming threads of a tier hand their inputs to: each thread waits for its own outcomes.

There are two: the batcher, where a device is ours (workers/batcher.py), and the fan-out, where a server is asked
(workers/fanout.py).
"""

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from configs.errors import FleetError
from workers.engines import EngineAwayError
from workers.panel import Panel, Scores
from workers.progress import Progress


class EndingError(FleetError):
    """Work came after the end; whoever reaps this process's batches does it."""


class Overdue:
    """The deadline came before the device or the server did: none of its time was spent."""


class Left:
    """The process was told to end before its turn came: another process does it, and soon."""


OVERDUE, LEFT = Overdue(), Left()

#: What became of one input: the scores of the panel, or why it was not scored.
Outcome = Scores | Overdue | Left | EngineAwayError


class Work(Struct):
    """What one thread brought, and how far it is."""

    inputs: Sequence[Any]
    outcomes: list[Outcome]
    finished: threading.Event
    lane: str
    #: When each input is overdue, on the monotonic clock; empty: never.
    due_s: Sequence[float] = ()
    #: It wants nothing beside it, and this run in place of its inputs.
    alone: Callable[[], None] | None = None
    #: Inputs that were begun so far, and done so far.
    taken: int = 0
    done: int = 0
    error: Exception | None = None
    #: Its share of the time that the device or the server had work, in seconds.
    spent_s: float = 0.0


class Scorer(ABC):
    """Scores inputs from many threads; live work goes before bulk.

    Args:
        panel: loaded and warm.
        progress: watches the work, and not the threads that wait for it.
        bulk_share: share that bulk has while live work never runs dry.
    """

    def __init__(self, panel: Panel, progress: Progress, bulk_share: float) -> None:
        self._panel = panel
        self._progress = progress
        self._waiting: dict[str, deque[Work]] = {"live": deque(), "bulk": deque()}
        #: So many turns in a row pass over bulk that waits; the next one is bulk's.
        self._patience = 1 / bulk_share - 1 if bulk_share else math.inf
        self._passed_over = 0
        #: Held while work is put, and to say that no more is.
        self._door = threading.Condition()
        self._ending = False

    @abstractmethod
    def start(self) -> None:
        """Begins; the panel is loaded and warm."""

    @abstractmethod
    def stop(self) -> None:
        """Ends after what waits; what comes later is refused."""

    @abstractmethod
    def leave(self) -> None:
        """The process was told to end: what would take long to begin need not be begun, its outcome is LEFT."""

    @abstractmethod
    def alone(self, task: Callable[[], None], lane: str) -> None:
        """Has a task run, which may score_now(); nothing is scored beside it.

        Raises:
            Exception: what the task raised.
        """

    @abstractmethod
    def score_now(self, one: Any) -> Outcome | Exception:
        """What becomes of one input, or what the engine raised; for a task of alone()."""

    @abstractmethod
    def _put(self, work: Work) -> None:
        """Takes work, under the door."""

    def score(self, inputs: Sequence[Any], lane: str, due_s: Sequence[float] = ()) -> tuple[list[Outcome], float]:
        """Scores inputs, blocking.

        Args:
            inputs: prepared photos.
            lane: live or bulk.
            due_s: when each input is overdue, on the monotonic clock; empty: never.

        Returns:
            What became of each input, in their order; and these inputs' share of the device's or the server's time, in
            seconds.

        Raises:
            Exception: what the engine raised, for one of them or for others that were scored in one batch with them.
            EndingError: it has ended.
        """
        if not inputs:
            return [], 0.0
        work = Work(inputs, [OVERDUE] * len(inputs), threading.Event(), lane, due_s)
        self._await(work)
        return work.outcomes, work.spent_s

    def _await(self, work: Work) -> None:
        with self._door:
            if self._ending:
                raise EndingError("the scoring of this process has ended")
            self._put(work)
        with self._progress.elsewhere():
            work.finished.wait()
        if work.error is not None:
            raise work.error
