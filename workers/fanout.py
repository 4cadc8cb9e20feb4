"""The fan-out to a served model: in place of device batches, a number of questions that are in flight all the time.

A server makes its own batches. Were photos handed to it in groups, the slowest of each group would hold the next one.
"""

import asyncio
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from msgspec import Struct

from routing.owner import STALLED
from workers.background import background, wait_for
from workers.batcher import OVERDUE, EndingError, Outcome
from workers.engines import EngineAwayError
from workers.panel import Panel
from workers.progress import Progress

log = structlog.get_logger(__name__)

#: While questions are in flight the loop says so often that it turns. Each question ends by itself, in its own time.
TURN_S = 0.5


class _Work(Struct):
    inputs: Sequence[Any]
    outcomes: list[Outcome]
    finished: threading.Event
    lane: str
    #: When each input is overdue, on the monotonic clock; empty: never.
    due_s: Sequence[float] = ()
    #: It wants nothing in flight beside it: ``finished`` is set when that is so, and nothing starts until it is over.
    alone: bool = False
    #: Inputs whose question was begun, and ended.
    taken: int = 0
    done: int = 0
    error: Exception | None = None
    #: Its questions' part of the time in which any was in flight, in seconds.
    share_s: float = 0.0


class Fanout:
    """Asks about inputs from many threads; what workers.batcher.Batcher is to a device, this is to a server.

    Args:
        panel: loaded; its model is served.
        in_flight: questions at once, at most.
        progress: watches the loop while questions are in flight, and not the threads that wait for them.
        bulk_share: share of the questions that bulk has while live work never runs dry.
    """

    def __init__(self, panel: Panel, in_flight: int, progress: Progress, bulk_share: float = 0.2) -> None:
        self._panel = panel
        self._most = in_flight
        self._progress = progress
        self._loop = background()
        # The loop's alone from here on, but for _ending.
        self._waiting: dict[str, deque[_Work]] = {"live": deque(), "bulk": deque()}
        #: So many questions in a row pass over bulk that waits; the next one is bulk's.
        self._patience = 1 / bulk_share - 1 if bulk_share else math.inf
        self._passed_over = 0
        self._questions: set[asyncio.Task[None]] = set()
        self._alone = False
        #: Seconds that one question would have had if the time were divided among those in flight; and until when.
        self._shared_s = self._shared_until_s = 0.0
        self._turning: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._ending = False
        self._door = threading.Lock()

    def start(self) -> None:
        """Nothing: the background loop runs."""

    def stop(self) -> None:
        """Waits for the questions in flight and those before them; later ones are refused."""
        with self._door:
            self._ending = True
        wait_for(self._drained())

    def score(self, inputs: Sequence[Any], lane: str, due_s: Sequence[float] = ()) -> tuple[list[Outcome], float]:
        """Asks about inputs, blocking; live ones go before bulk.

        Args:
            inputs: prepared photos.
            lane: live or bulk.
            due_s: when each input is overdue, on the monotonic clock, whether it was asked about or not; empty: never.

        Returns:
            What became of each input, in their order; and the part of the server's time that these had, in seconds.

        Raises:
            Exception: what the engine raised for one of them; the others were asked about all the same.
        """
        if not inputs:
            return [], 0.0
        work = _Work(inputs, [OVERDUE] * len(inputs), threading.Event(), lane, due_s)
        self._await(work)
        return work.outcomes, work.share_s

    def alone(self, task: Callable[[], None], lane: str) -> None:
        """Runs a task in this thread, which may score_now(), while nothing else is in flight.

        Raises:
            Exception: what the task raised.
        """
        self._await(_Work([None], [OVERDUE], threading.Event(), lane, alone=True))
        try:
            task()
        finally:
            self._loop.call_soon_threadsafe(self._over)

    def score_now(self, one: Any) -> Outcome | Exception:
        """What becomes of one input, or what the engine raised; for a task of alone()."""
        with self._progress.elsewhere():
            return wait_for(self._asked(one, math.inf))

    def _await(self, work: _Work) -> None:
        with self._door:
            if self._ending:
                raise EndingError("the fan-out has ended")
            self._loop.call_soon_threadsafe(self._take, work)
        with self._progress.elsewhere():
            work.finished.wait()
        if work.error is not None:
            raise work.error

    def _take(self, work: _Work) -> None:
        self._waiting[work.lane].append(work)
        self._pump()

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

    def _next(self) -> _Work | None:
        """The work whose question is next: live before bulk, but bulk once it was passed over often enough."""
        live, bulk = self._waiting["live"], self._waiting["bulk"]
        if live and bulk:
            return bulk[0] if self._passed_over >= self._patience else live[0]
        return live[0] if live else bulk[0] if bulk else None

    def _begin(self, work: _Work) -> None:
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

    async def _ask(self, work: _Work, place: int) -> None:
        begun_s = self._shared_s
        due_s = work.due_s[place] if work.due_s else math.inf
        outcome = await self._asked(work.inputs[place], due_s)
        self._pass_time()
        work.share_s += self._shared_s - begun_s
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
