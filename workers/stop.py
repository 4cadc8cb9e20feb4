"""A stop on a photo's way: a Celery task claims and works until it is dry. Tiers are stops, so is the collector."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import structlog

from routing.answers import Claim
from routing.owner import Owner
from routing.patience import patiently
from routing.refusals import OwnerDead
from workers.progress import Progress

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: A task ends after this long and rings for its successor, so that Flower shows a stream of tasks and a drain is
#: bounded.
SHIFT_S = 2.0

#: One thread of a process attends its stop: dry, it looks again after this long, then twice as long, and so on until it
#: was idle for IDLE_S; only then its task ends. It says so in the ledger, so that nobody rings meanwhile: a doorbell
#: costs 2 ms of CPU over both sides, a look 0.15 ms.
FIRST_LOOK_S = 0.002
IDLE_S = 0.02
ATTEND_MS = 20

#: While every thread that takes bulk is busy, one more looks for live work this often, so that a live photo waits for
#: the device batch in hand and not for a thread.
LIVE_LOOK_S = 0.01
#: Live claims beside those of the bulk threads, each in a thread of its own: what comes during one device batch is
#: ready for the next.
LIVE_CLAIMS = 8
#: Bulk claims in hand before live work goes first in a claim: one on the device, one before it.
BULK_CLAIMS = 2
#: Shares of bulk in a claim: none whatever waits, none while live work waits, and all while bulk waits.
LIVE_ONLY, LIVE_FIRST, BULK_FIRST = -1.0, 0.0, 1.0


class Stop(ABC):
    """What a tier and the collector have in common.

    Args:
        name: its name in the ledger.
        max_items: items of one claim at most.
        owner: this process's hold on batches.
        progress: what the owner watches.
        threads: tasks that take either lane at once; a task beyond looks for live work only. 0: all take either.
    """

    def __init__(self, name: str, max_items: int, owner: Owner, progress: Progress, threads: int = 0) -> None:
        self.name = name
        self.max_items = max_items
        self.owner = owner
        self.progress = progress
        #: Set when the process is told to end: tasks stop after the claim in hand.
        self.ending = threading.Event()
        #: Whether nothing is to be claimed for now; asked before each claim, so it must be quick.
        self.rests: Callable[[], bool] = lambda: False
        #: After a claim that was not full, ready batches gather for this long.
        self.linger_s = 0.0
        self._attendant = threading.Lock()
        #: How long the last claim took.
        self._work_s = 0.0
        self._threads = threads
        self._entered = self._bulk_in_hand = 0
        self._door = threading.Lock()
        self._live = ThreadPoolExecutor(LIVE_CLAIMS, thread_name_prefix="live")

    @abstractmethod
    def work(self, claim: Claim) -> None:
        """Takes a claim's batches to their children in the ledger."""

    @abstractmethod
    def hurry(self) -> None:
        """The process was told to end: what is in hand may be cut short. Called once, in a thread of its own."""

    def serve(self) -> int:
        """The body of the task that a doorbell starts: works until the stop is dry; returns the batches worked."""
        worked, entered = 0, self._enter()
        if not entered:
            worked, entered = self._serve_live()
        if entered:
            try:
                worked += self._serve_both()
            finally:
                with self._door:
                    self._entered -= 1
        return worked

    def _enter(self) -> bool:
        """Whether this thread may take either lane."""
        with self._door:
            if self._threads and self._entered >= self._threads:
                return False
            self._entered += 1
            return True

    def _serve_both(self) -> int:
        begun_s = worked_s = time.monotonic()
        worked, look_s, rung = 0, FIRST_LOOK_S, False
        attending = self._attendant.acquire(blocking=False)
        try:
            while not self.ending.is_set():
                now_s = time.monotonic()
                if now_s - begun_s > SHIFT_S:
                    # One doorbell for each that was answered: a second one would make them pile up before a deep queue.
                    if not rung:
                        self.owner.doorbells.ring([self.name])
                    break
                # The last look says so, whatever it finds: from then on writers ring again.
                last = now_s - worked_s > IDLE_S
                if self.rests():
                    break
                claim = self._claim(attending, last)
                if claim is None or not claim.batches:
                    if last or not attending:
                        break
                    time.sleep(look_s)
                    look_s *= 2
                    continue
                if worked == 0 and claim.left:
                    # More than this thread took: wake the next one, who does the same.
                    self.owner.doorbells.ring([self.name])
                    rung = True
                begun_work_s = time.monotonic()
                self._work(claim)
                self._work_s = time.monotonic() - begun_work_s
                worked += len(claim.batches)
                if self.linger_s and sum(batch.n for batch in claim.batches) < self.max_items:
                    time.sleep(self.linger_s)
                worked_s, look_s = time.monotonic(), FIRST_LOOK_S
        finally:
            if attending:
                self._attendant.release()
        return worked

    def _serve_live(self) -> tuple[int, bool]:
        """Looks for live work while all others are busy: the batches worked, and whether this thread may enter now."""
        begun_s = time.monotonic()
        worked = 0
        pending: list[Future[None]] = []
        try:
            while True:
                over = time.monotonic() - begun_s > SHIFT_S
                for done in [future for future in pending if future.done()]:
                    pending.remove(done)
                    done.result()
                if not pending:
                    if self._enter():
                        return worked, True
                    if self.ending.is_set():
                        return worked, False
                    if over:
                        self.owner.doorbells.ring([self.name])
                        return worked, False
                takes = len(pending) < LIVE_CLAIMS and not over and not self.ending.is_set()
                claim = self._claim_live() if takes and not self.rests() else None
                if claim and claim.batches:
                    pending.append(self._live.submit(self._work, claim))
                    worked += len(claim.batches)
                else:
                    time.sleep(LIVE_LOOK_S)
        finally:
            # Only where one failed, or the next claim did: the others are waited for, and what they say is not lost.
            for future in pending:
                if error := future.exception():
                    log.error("live work failed", stop=self.name, exc_info=error)

    def _claim_live(self) -> Claim | None:
        return self._ask(lambda: self.owner.claim(self.name, self.max_items, bulk_share=LIVE_ONLY))

    def _claim(self, attending: bool, last: bool) -> Claim | None:
        attend_ms = (0 if last else ATTEND_MS) if attending else -1
        # A stop that works for longer says nothing meanwhile: its other threads, and other workers, want to be rung.
        busy_ms = (ATTEND_MS if self._work_s < ATTEND_MS / 2000 else 0) if attending else -1
        share = self._bulk_share()
        return self._ask(lambda: self.owner.claim(self.name, self.max_items, attend_ms, busy_ms, share))

    def _bulk_share(self) -> float | None:
        """Of a tier the device gives bulk its share, if bulk waits before it; of another stop the ledger does."""
        if not self._threads or not self.owner.profile.delivery.bulk_share:
            return None
        return BULK_FIRST if self._bulk_in_hand < BULK_CLAIMS else LIVE_FIRST

    def _ask(self, claim: Callable[[], Claim]) -> Claim | None:
        try:
            return self.patiently(claim)
        except OwnerDead:
            # The next beat takes a new id; whatever is ready stays ready.
            time.sleep(self.owner.profile.delivery.beat_s)
            return None

    def _work(self, claim: Claim) -> None:
        bulk = claim.batches[0].lane == "bulk"
        with self._door:
            self._bulk_in_hand += bulk
        try:
            with self.progress.in_hand():
                self.work(claim)
        finally:
            with self._door:
                self._bulk_in_hand -= bulk
            self.owner.release(claim)

    def patiently(self, verb: Callable[[], T]) -> T:
        """Asks the server until it answers; waiting for it is no stall."""
        return patiently(verb, self._go_on)

    def _go_on(self) -> bool:
        self.progress.moved()
        return not (self.ending.is_set() or self.owner.ending)
