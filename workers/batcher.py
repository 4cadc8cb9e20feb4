"""The dynamic batcher: one thread owns the device and merges what the claiming threads bring.

The device never waits for a batch to fill: it takes what is there, and while it scores, the next batch gathers.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from msgspec import Struct

from configs.errors import FleetError
from routing.owner import STALLED
from workers.engines import DeviceMemoryError, EngineAwayError
from workers.panel import Panel, Scores
from workers.progress import Progress

log = structlog.get_logger(__name__)

#: Device batches that filled a room smaller than max_batch, one after another, before a room twice as large is tried.
GOOD_BATCHES = 100


class EndingError(FleetError):
    """Work came after the end of the device thread; whoever reaps this process's batches does it."""


class Overdue:
    """The deadline came before the device did: no device time was spent."""


OVERDUE = Overdue()

#: What became of one input: the scores of the panel, or why it was not scored.
Outcome = Scores | Overdue | EngineAwayError


class _Work(Struct):
    inputs: Sequence[Any]
    outcomes: list[Outcome]
    finished: threading.Event
    lane: str
    #: When each input is overdue, on the monotonic clock; empty: never.
    due_s: Sequence[float] = ()
    #: The device thread runs this, and nothing beside it, in place of scoring the inputs.
    alone: Callable[[], None] | None = None
    #: Inputs handed to the device so far, and done so far.
    taken: int = 0
    done: int = 0
    error: Exception | None = None
    #: Device time of its share, in seconds.
    device_s: float = 0.0

    def in_time(self, start: int, end: int, now_s: float) -> Sequence[int]:
        """The places from start to end that are not overdue; the others get their outcome."""
        if not self.due_s:
            return range(start, end)
        places = [i for i in range(start, end) if now_s < self.due_s[i]]
        for i in set(range(start, end)).difference(places):
            self.outcomes[i] = OVERDUE
        return places


class Batcher:
    """Scores inputs from many threads in one.

    Args:
        panel: loaded and warm.
        max_batch: inputs of one device batch at most.
        progress: watches the device while it scores, and not the threads that wait for it.
        bulk_share: share of the device batches that bulk has while live work never runs dry.
    """

    def __init__(self, panel: Panel, max_batch: int, progress: Progress, bulk_share: float = 0.2) -> None:
        self._panel = panel
        self._max_batch = max_batch
        self._progress = progress
        self._waiting: dict[str, deque[_Work]] = {"live": deque(), "bulk": deque()}
        self._wake = threading.Condition()
        self._ending = False
        #: So many device batches in a row pass over bulk that waits; the next one serves it first.
        self._patience = 1 / bulk_share - 1 if bulk_share else math.inf
        self._passed_over = 0
        #: Inputs that the device has memory for, as far as is known.
        self.room = max_batch
        self._good = 0
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Starts the device thread; the engine is loaded and warm."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the device thread after what waits for it."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join()

    def score(self, inputs: Sequence[Any], lane: str, due_s: Sequence[float] = ()) -> tuple[list[Outcome], float]:
        """Scores inputs, blocking; live work goes before bulk.

        Args:
            inputs: prepared photos.
            lane: live or bulk.
            due_s: when each input is overdue, on the monotonic clock; empty: never.

        Returns:
            What became of each input, in their order; and the device time of this share in seconds.

        Raises:
            Exception: what the engine raised for a device batch that held some of them.
        """
        if not inputs:
            return [], 0.0
        work = _Work(inputs, [OVERDUE] * len(inputs), threading.Event(), lane, due_s)
        self._await(work)
        return work.outcomes, work.device_s

    def alone(self, task: Callable[[], None], lane: str) -> None:
        """Has the device thread run a task, which may score_now(); nothing is scored beside it.

        Raises:
            Exception: what the task raised.
        """
        self._await(_Work([None], [OVERDUE], threading.Event(), lane, alone=task))

    def score_now(self, one: Any) -> Outcome | Exception:
        """What becomes of one input, or what the engine raised; for a task of alone()."""
        outcomes = self._outcomes([one])
        if outcomes is None:
            raise RuntimeError("one input cannot be halved")
        return outcomes if isinstance(outcomes, Exception) else outcomes[0]

    def _await(self, work: _Work) -> None:
        with self._wake:
            if self._ending:
                raise EndingError("the device thread has ended")
            self._waiting[work.lane].append(work)
            self._wake.notify()
        with self._progress.elsewhere():
            work.finished.wait()
        if work.error is not None:
            raise work.error

    def _gather(self) -> list[tuple[_Work, int, int]]:
        """The next device batch as slices of works; waits while there is nothing."""
        with self._wake:
            while not self._ending and not any(self._waiting.values()):
                self._wake.wait()
            lanes = ("bulk", "live") if self._passed_over >= self._patience else ("live", "bulk")
            slices = self._fill([self._waiting[lane] for lane in lanes])
            passed_over = bool(self._waiting["bulk"]) and all(work.lane == "live" for work, _, _ in slices)
            self._passed_over = self._passed_over + 1 if passed_over else 0
            return slices

    def _fill(self, queues: Sequence[deque[_Work]]) -> list[tuple[_Work, int, int]]:
        room = self.room
        slices: list[tuple[_Work, int, int]] = []
        for queue in queues:
            while queue and room:
                work = queue[0]
                if work.alone and slices:
                    return slices
                end = min(len(work.inputs), work.taken + room)
                slices.append((work, work.taken, end))
                room -= end - work.taken
                work.taken = end
                if end == len(work.inputs):
                    queue.popleft()
                if work.alone:
                    return slices
        return slices

    def _put_back(self, slices: list[tuple[_Work, int, int]]) -> None:
        """To where they were before they were gathered."""
        with self._wake:
            for work, start, _ in reversed(slices):
                if work.taken == len(work.inputs):
                    self._waiting[work.lane].appendleft(work)
                work.taken = start

    def _run(self) -> None:
        try:
            while slices := self._gather():
                with self._progress.in_hand():
                    task = slices[0][0].alone
                    if task:
                        self._serve_alone(slices[0][0], task)
                    else:
                        self._serve(slices)
        except Exception:
            # Who waits for the device is not watched: without this thread all would wait for ever.
            log.critical("the device thread failed, ending this process", exc_info=True)
            os._exit(STALLED)

    def _serve_alone(self, work: _Work, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as raised:  # noqa: BLE001 - handed to the thread whose task it is
            work.error = raised
        work.finished.set()

    def _serve(self, slices: list[tuple[_Work, int, int]]) -> None:
        now_s = time.monotonic()
        parts = [(work, work.in_time(start, end, now_s)) for work, start, end in slices]
        batch = [work.inputs[i] for work, places in parts for i in places]
        outcomes = self._outcomes(batch)
        if outcomes is None:
            self._put_back(slices)
            return
        spent_s = time.monotonic() - now_s
        at = 0
        for (work, places), (_, start, end) in zip(parts, slices, strict=True):
            if places:
                work.device_s += spent_s * len(places) / len(batch)
                if isinstance(outcomes, Exception):
                    work.error = outcomes
                else:
                    for place, outcome in zip(places, outcomes[at : at + len(places)], strict=True):
                        work.outcomes[place] = outcome
            at += len(places)
            work.done += end - start
            if work.done == len(work.inputs):
                work.finished.set()

    def _outcomes(self, batch: list[Any]) -> Sequence[Outcome] | Exception | None:
        """One an input; or what the engine raised, which may be the fault of one; None: try again with fewer."""
        if not batch:
            return []
        try:
            scores = self._panel.score(batch)
        except DeviceMemoryError as raised:
            if len(batch) == 1:
                return [raised]
            self._shrink(len(batch), raised)
            return None
        except EngineAwayError as raised:
            return [raised] * len(batch)
        except Exception as raised:  # noqa: BLE001 - handed to the threads whose photos were in the batch
            return raised
        self._grow(len(batch))
        return scores

    def _shrink(self, refused: int, error: DeviceMemoryError) -> None:
        """Half of what did not fit is tried next."""
        self.room, self._good = refused // 2, 0
        log.warning("device out of memory, smaller batches", refused=refused, room=self.room, error=str(error))

    def _grow(self, scored: int) -> None:
        """Only batches that filled the room show that it is there."""
        if scored < self.room or self.room == self._max_batch:
            return
        self._good += 1
        if self._good >= GOOD_BATCHES:
            self.room, self._good = min(2 * self.room, self._max_batch), 0
            log.info("larger device batches again", room=self.room)
