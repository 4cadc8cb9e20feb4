"""The dynamic batcher: one thread owns the device and merges what the claiming threads bring.

The device never waits for a batch to fill: it takes what is there, and while it scores, the next batch gathers.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from routing.owner import STALLED
from workers.engines import DeviceMemoryError, EngineAwayError
from workers.panel import Panel
from workers.progress import Progress
from workers.scorer import OVERDUE, Outcome, Scorer, Work

log = structlog.get_logger(__name__)

#: Device batches that filled a room smaller than max_batch, one after another, before a room twice as large is tried.
GOOD_BATCHES = 100


class Batcher(Scorer):
    """Scores inputs from many threads in one.

    Args:
        panel: loaded and warm.
        max_batch: inputs of one device batch at most.
        progress: watches the device while it scores, and not the threads that wait for it.
        bulk_share: share of the device batches that bulk has while live work never runs dry.
    """

    def __init__(self, panel: Panel, max_batch: int, progress: Progress, bulk_share: float = 0.2) -> None:
        super().__init__(panel, progress, bulk_share)
        self._max_batch = max_batch
        #: Inputs that the device has memory for, as far as is known.
        self.room = max_batch
        self._good = 0
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Starts the device thread; the engine is loaded and warm."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the device thread after what waits for it."""
        with self._door:
            self._ending = True
            self._door.notify()
        self._thread.join()

    def leave(self) -> None:
        """Nothing: what waits is a few device batches."""

    def alone(self, task: Callable[[], None], lane: str) -> None:
        """Has the device thread run a task, which may score_now(); nothing is scored beside it.

        Raises:
            Exception: what the task raised.
        """
        self._await(Work([None], [OVERDUE], threading.Event(), lane, alone=task))

    def score_now(self, one: Any) -> Outcome | Exception:
        """What becomes of one input, or what the engine raised; for a task of alone()."""
        outcomes = self._outcomes([one])
        if outcomes is None:
            raise RuntimeError("one input cannot be halved")
        return outcomes if isinstance(outcomes, Exception) else outcomes[0]

    def _put(self, work: Work) -> None:
        self._waiting[work.lane].append(work)
        self._door.notify()

    def _gather(self) -> list[tuple[Work, int, int]]:
        """The next device batch as slices of works; waits while there is nothing."""
        with self._door:
            while not self._ending and not any(self._waiting.values()):
                self._door.wait()
            lanes = ("bulk", "live") if self._passed_over >= self._patience else ("live", "bulk")
            slices = self._fill([self._waiting[lane] for lane in lanes])
            passed_over = bool(self._waiting["bulk"]) and all(work.lane == "live" for work, _, _ in slices)
            self._passed_over = self._passed_over + 1 if passed_over else 0
            return slices

    def _fill(self, queues: Sequence[deque[Work]]) -> list[tuple[Work, int, int]]:
        room = self.room
        slices: list[tuple[Work, int, int]] = []
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

    def _put_back(self, slices: list[tuple[Work, int, int]]) -> None:
        """To where they were before they were gathered."""
        with self._door:
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

    def _serve_alone(self, work: Work, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as raised:  # noqa: BLE001 - handed to the thread whose task it is
            work.error = raised
        work.finished.set()

    def _serve(self, slices: list[tuple[Work, int, int]]) -> None:
        now_s = time.monotonic()
        parts = [(work, _in_time(work, start, end, now_s)) for work, start, end in slices]
        batch = [work.inputs[i] for work, places in parts for i in places]
        outcomes = self._outcomes(batch)
        if outcomes is None:
            self._put_back(slices)
            return
        spent_s = time.monotonic() - now_s
        at = 0
        for (work, places), (_, start, end) in zip(parts, slices, strict=True):
            if places:
                work.spent_s += spent_s * len(places) / len(batch)
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


def _in_time(work: Work, start: int, end: int, now_s: float) -> Sequence[int]:
    """The places from start to end that are not overdue."""
    if not work.due_s:
        return range(start, end)
    return [i for i in range(start, end) if now_s < work.due_s[i]]
