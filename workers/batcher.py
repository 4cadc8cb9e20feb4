"""The dynamic batcher: one thread owns the device and merges what the claiming threads bring.

The device never waits for a batch to fill: it takes what is there, and while it scores, the next batch gathers.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from configs.errors import FleetError
from workers.engines import Engine


class ContractError(FleetError):
    """An engine returned another number of scores than it was given inputs, or one that is not a number."""


class EndingError(FleetError):
    """Work came after the end of the device thread; whoever reaps this process's batches does it."""


class _Work(Struct):
    inputs: Sequence[Any]
    scores: list[float | None]
    finished: threading.Event
    alone: bool
    #: Inputs handed to the device so far, and scored so far.
    taken: int = 0
    done: int = 0
    error: Exception | None = None
    #: Device time of its share, in seconds.
    device_s: float = 0.0


class Batcher:
    """Scores inputs from many threads in one.

    Args:
        engine: loaded and warm.
        max_batch: inputs of one device batch at most.
        moved: called after each device batch.
    """

    def __init__(self, engine: Engine, max_batch: int, moved: Callable[[], None]) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._waiting: dict[str, deque[_Work]] = {"live": deque(), "bulk": deque()}
        self._wake = threading.Condition()
        self._ending = False
        self._moved = moved
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Starts the device thread; the engine is loaded and warm."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the device thread after the batch in hand."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join()

    def score(self, inputs: Sequence[Any], lane: str, *, alone: bool = False) -> tuple[list[float | None], float]:
        """Scores inputs, blocking; live work goes before bulk.

        Args:
            inputs: prepared photos.
            lane: live or bulk.
            alone: in device batches with nobody else's inputs: they are suspects.

        Returns:
            One raw logit (None: abstained) an input, in their order; and the device time of this share in seconds.

        Raises:
            Exception: what the engine raised for a device batch that held some of them.
        """
        if not inputs:
            return [], 0.0
        work = _Work(inputs=inputs, scores=[None] * len(inputs), finished=threading.Event(), alone=alone)
        with self._wake:
            if self._ending:
                raise EndingError("the device thread has ended")
            self._waiting[lane].append(work)
            self._wake.notify()
        work.finished.wait()
        if work.error is not None:
            raise work.error
        return work.scores, work.device_s

    def _gather(self) -> list[tuple[_Work, int, int]]:
        """The next device batch as slices of works; waits while there is nothing."""
        with self._wake:
            while not self._ending and not any(self._waiting.values()):
                self._wake.wait()
            room = self._max_batch
            slices: list[tuple[_Work, int, int]] = []
            for queue in self._waiting.values():
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

    def _score(self, batch: list[Any]) -> Sequence[float | None]:
        scores = self._engine.score(batch)
        if len(scores) != len(batch):
            module = type(self._engine).__module__
            raise ContractError(f"{module} returned {len(scores)} scores for {len(batch)} inputs")
        if any(score != score for score in scores):  # noqa: PLR0124 - true of NaN only
            raise ContractError(f"{module} returned a score that is not a number")
        return scores

    def _run(self) -> None:
        while slices := self._gather():
            batch = [x for work, start, end in slices for x in work.inputs[start:end]]
            begun = time.perf_counter()
            scores: Sequence[float | None] = ()
            error: Exception | None = None
            try:
                scores = self._score(batch)
            except Exception as raised:  # noqa: BLE001 - handed to the threads whose photos were in the batch
                error = raised
            per_input_s = (time.perf_counter() - begun) / len(batch)
            at = 0
            for work, start, end in slices:
                n = end - start
                if error is None:
                    work.scores[start:end] = scores[at : at + n]
                else:
                    work.error = error
                at += n
                work.device_s += per_input_s * n
                work.done += n
                if work.done == len(work.inputs):
                    work.finished.set()
            self._moved()
