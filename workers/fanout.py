"""The fan-out to a served model: in place of device batches, a number of questions that are in flight all the time.

A server makes its own batches. Were photos handed to it in groups, the slowest of each group would hold the next one.
"""

import asyncio
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from routing.owner import STALLED
from workers.background import background, wait_for
from workers.engines import EngineAwayError
from workers.panel import Panel
from workers.progress import Progress
from workers.scorer import LEFT, OVERDUE, Outcome, Scorer, Work

log = structlog.get_logger(__name__)

#: While questions are in flight the loop says so often that it turns. Each question ends by itself, in its own time.
TURN_S = 0.5


class Fanout(Scorer):
    """Asks about inputs from many threads; what workers.batcher.Batcher is to a device, this is to a server.

    Args:
        panel: loaded; its model is served.
        in_flight: questions at once, at most.
        progress: watches the loop while questions are in flight, and not the threads that wait for them.
        bulk_share: share of the questions that bulk has while live work never runs dry.
    """

    def __init__(self, panel: Panel, in_flight: int, progress: Progress, bulk_share: float = 0.2) -> None:
        super().__init__(panel, progress, bulk_share)
        self._most = in_flight
        # The loop's alone from here on, and so are the queues and their turns.
        self._loop = background()
        self._questions: set[asyncio.Task[None]] = set()
        self._alone = False
        #: Seconds that one question would have had if the time were divided among those in flight; and until when.
        self._shared_s = self._shared_until_s = 0.0
        self._turning: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._leaving = False

    def start(self) -> None:
        """Nothing: the background loop runs."""

    def stop(self) -> None:
        """Waits for the questions in flight and those before them; later ones are refused."""
        with self._door:
            self._ending = True
        wait_for(self._drained())

    def leave(self) -> None:
        """Questions in flight end; no other is begun, but for those of suspects: a server may take long over each."""
        self._loop.call_soon_threadsafe(self._leave)

    def alone(self, task: Callable[[], None], lane: str) -> None:
        """Runs a task in this thread, which may score_now(), while nothing else is in flight.

        Raises:
            Exception: what the task raised.
        """
        self._await(Work([None], [OVERDUE], threading.Event(), lane, alone=task))
        try:
            task()
        finally:
            self._loop.call_soon_threadsafe(self._over)

    def score_now(self, one: Any) -> Outcome | Exception:
        """What becomes of one input, or what the engine raised; for a task of alone()."""
        with self._progress.elsewhere():
            return wait_for(self._asked(one, math.inf))

    def _put(self, work: Work) -> None:
        self._loop.call_soon_threadsafe(self._take, work)

    def _take(self, work: Work) -> None:
        if self._leaving and not work.alone:
            self._let_be(work)
        else:
            self._waiting[work.lane].append(work)
            self._pump()

    def _leave(self) -> None:
        self._leaving = True
        for lane, works in self._waiting.items():
            for work in works:
                if not work.alone:
                    self._let_be(work)
            self._waiting[lane] = deque(work for work in works if work.alone)
        self._idle.set()

    def _let_be(self, work: Work) -> None:
        """What of it was not begun is left."""
        for place in range(work.taken, len(work.inputs)):
            work.outcomes[place] = LEFT
        work.done += len(work.inputs) - work.taken
        work.taken = len(work.inputs)
        if work.done == len(work.inputs):
            work.finished.set()

    def _over(self) -> None:
        self._alone = False
        self._idle.set()
        self._pump()

    def _pump(self) -> None:
        """Begins as many questions as may be."""
        try:
            while not self._alone and len(self._questions) < self._most and (work := self._next()):
                if work.alone:
                    if self._questions:
                        return
                    self._alone = True
                    self._waiting[work.lane].popleft()
                    work.finished.set()
                    return
                self._begin(work)
        except Exception:
            # Who waits is not watched: without this all would wait for ever.
            log.critical("the fan-out failed, ending this process", exc_info=True)
            os._exit(STALLED)

    def _next(self) -> Work | None:
        """The work whose question is next: live before bulk, but bulk once it was passed over often enough."""
        live, bulk = self._waiting["live"], self._waiting["bulk"]
        if live and bulk:
            return bulk[0] if self._passed_over >= self._patience else live[0]
        return live[0] if live else bulk[0] if bulk else None

    def _begin(self, work: Work) -> None:
        passed_over = work.lane == "live" and bool(self._waiting["bulk"])
        self._passed_over = self._passed_over + 1 if passed_over else 0
        place = work.taken
        work.taken += 1
        if work.taken == len(work.inputs):
            self._waiting[work.lane].popleft()
        self._pass_time()
        task = self._loop.create_task(self._ask(work, place))
        self._questions.add(task)
        task.add_done_callback(self._ended)
        if self._turning is None:
            self._turning = self._loop.create_task(self._turn())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._pass_time()
        self._questions.discard(task)
        self._idle.set()
        self._pump()

    async def _ask(self, work: Work, place: int) -> None:
        begun_s = self._shared_s
        due_s = work.due_s[place] if work.due_s else math.inf
        outcome = await self._asked(work.inputs[place], due_s)
        self._pass_time()
        work.spent_s += self._shared_s - begun_s
        if isinstance(outcome, Exception) and not isinstance(outcome, EngineAwayError):
            work.error = outcome
        else:
            work.outcomes[place] = outcome
        work.done += 1
        if work.done == len(work.inputs):
            work.finished.set()

    async def _asked(self, one: Any, due_s: float) -> Outcome | Exception:
        left_s = due_s - time.monotonic()
        if left_s <= 0:
            return OVERDUE
        try:
            async with asyncio.timeout(None if left_s == math.inf else left_s) as deadline:
                return await self._panel.ask(one)
        except TimeoutError as raised:
            return OVERDUE if deadline.expired() else raised
        except Exception as raised:  # noqa: BLE001 - handed to the thread whose photo it is
            return raised

    def _pass_time(self) -> None:
        """Before the number in flight changes: the time since it last did is divided among them."""
        now_s = time.monotonic()
        if self._questions:
            self._shared_s += (now_s - self._shared_until_s) / len(self._questions)
        self._shared_until_s = now_s

    async def _turn(self) -> None:
        """Says that the loop turns, while questions are in flight."""
        with self._progress.in_hand():
            while self._questions:
                self._progress.moved()
                await asyncio.sleep(TURN_S)
        self._turning = None
        if self._questions:
            self._turning = self._loop.create_task(self._turn())

    async def _drained(self) -> None:
        while self._questions or any(self._waiting.values()) or self._alone:
            self._idle.clear()
            await self._idle.wait()
        if self._turning:
            self._turning.cancel()
            with suppress(asyncio.CancelledError):
                await self._turning
