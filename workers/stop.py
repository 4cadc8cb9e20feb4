"""A stop on a photo's way: a Celery task claims and works until it is dry. Tiers are stops, so is the collector."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import structlog

from routing.answers import Claim
from routing.owner import Owner
from routing.patience import patiently
from routing.refusals import OwnerDead

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


class Progress:
    """Whether work in hand moves. A heart that beats beside a hung device would keep its batches for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_hand = 0
        self._last_s = time.monotonic()

    def moved(self) -> None:
        """Something got done: a photo decoded, a device batch scored, a verb answered."""
        self._last_s = time.monotonic()

    def took(self, by: int) -> None:
        """Work came in hand (+1) or left it (-1)."""
        with self._lock:
            self._in_hand += by
            self._last_s = time.monotonic()

    def stalled_s(self) -> float:
        """Seconds since work in hand moved; 0 without any."""
        return time.monotonic() - self._last_s if self._in_hand else 0.0


class Stop(ABC):
    """What a tier and the collector have in common.

    Args:
        name: its name in the ledger.
        max_items: items of one claim at most.
        owner: this process's hold on batches.
        progress: what the owner watches.
    """

    def __init__(self, name: str, max_items: int, owner: Owner, progress: Progress) -> None:
        self.name = name
        self.max_items = max_items
        self.owner = owner
        self.progress = progress
        #: Set when the process is told to end: tasks stop after the claim in hand.
        self.ending = threading.Event()
        #: After a claim that was not full, ready batches gather for this long.
        self.linger_s = 0.0
        self._attendant = threading.Lock()

    @abstractmethod
    def work(self, claim: Claim) -> None:
        """Takes a claim's batches to their children in the ledger."""

    def serve(self) -> int:
        """The body of the task that a doorbell starts: works until the stop is dry; returns the batches worked."""
        begun_s = worked_s = time.monotonic()
        worked, work_s, look_s = 0, 0.0, FIRST_LOOK_S
        attending = self._attendant.acquire(blocking=False)
        try:
            while not self.ending.is_set():
                now_s = time.monotonic()
                if now_s - begun_s > SHIFT_S:
                    self.owner.doorbells.ring([self.name])
                    break
                # The last look says so, whatever it finds: from then on writers ring again.
                last = now_s - worked_s > IDLE_S
                claim = self._claim(attending, last, work_s)
                if claim is None or not claim.batches:
                    if last or not attending:
                        break
                    time.sleep(look_s)
                    look_s *= 2
                    continue
                if worked == 0 and claim.left:
                    # More than this thread took: wake the next one, who does the same.
                    self.owner.doorbells.ring([self.name])
                begun_work_s = time.monotonic()
                self._work(claim)
                work_s = time.monotonic() - begun_work_s
                worked += len(claim.batches)
                if self.linger_s and sum(batch.n for batch in claim.batches) < self.max_items:
                    time.sleep(self.linger_s)
                worked_s, look_s = time.monotonic(), FIRST_LOOK_S
        finally:
            if attending:
                self._attendant.release()
        return worked

    def _claim(self, attending: bool, last: bool, work_s: float) -> Claim | None:
        attend_ms = (0 if last else ATTEND_MS) if attending else -1
        # A stop that works for longer says nothing meanwhile: its other threads, and other workers, want to be rung.
        busy_ms = (ATTEND_MS if work_s < ATTEND_MS / 2000 else 0) if attending else -1
        try:
            return self.patiently(lambda: self.owner.claim(self.name, self.max_items, attend_ms, busy_ms))
        except OwnerDead:
            # The next beat takes a new id; whatever is ready stays ready.
            time.sleep(self.owner.profile.delivery.beat_s)
            return None

    def _work(self, claim: Claim) -> None:
        self.progress.took(1)
        try:
            self.work(claim)
        finally:
            self.progress.took(-1)
            self.owner.release(claim)

    def patiently(self, verb: Callable[[], T]) -> T:
        """Asks the server until it answers; waiting for it is no stall."""
        return patiently(verb, self._go_on)

    def _go_on(self) -> bool:
        self.progress.moved()
        return not (self.ending.is_set() or self.owner.ending)
