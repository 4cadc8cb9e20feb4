"""The standby: who serves a stop when no doorbell comes, and when not."""

import threading

import pytest

from routing.standby import PATIENCE_TICKS, Standby


class Dry:
    """A stop with ``left`` batches, one at each call."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> int:
        self.left -= 1
        return int(self.left >= 0)


def test_ready_work_that_nobody_asks_for_is_served_until_dry() -> None:
    """Nothing happens before the last tick of its patience; then everything is served."""
    dry = Dry(3)
    standby = Standby("first", dry)
    for _ in range(PATIENCE_TICKS - 1):
        standby.tick(5, busy=False)
    assert dry.left == 3
    standby.tick(5, busy=False)
    assert standby._thread
    standby._thread.join(10)
    assert dry.left == -1


@pytest.mark.parametrize("sign", ["busy", "looked", "empty"])
def test_a_sign_of_life_starts_its_patience_anew(sign: str) -> None:
    """Work in hand, a claim since the last tick, or nothing ready: doorbells are not missed."""
    dry = Dry(3)
    standby = Standby("first", dry)
    for i in range(3 * PATIENCE_TICKS):
        if i % PATIENCE_TICKS == PATIENCE_TICKS - 1:
            if sign == "looked":
                standby.looked()
            standby.tick(0 if sign == "empty" else 5, busy=sign == "busy")
        else:
            standby.tick(5, busy=False)
    standby.end()
    assert dry.left == 3


def test_one_thread_at_a_time_and_none_after_the_end() -> None:
    """While it serves, further ticks start nothing; after end() none does."""
    entered, release = threading.Semaphore(0), threading.Event()

    def serve() -> int:
        entered.release()
        release.wait(10)
        return 0

    standby = Standby("first", serve)
    for _ in range(3 * PATIENCE_TICKS):
        standby.tick(5, busy=False)
    assert entered.acquire(timeout=10)
    release.set()
    standby.end()
    for _ in range(3 * PATIENCE_TICKS):
        standby.tick(5, busy=False)
    assert not entered.acquire(blocking=False)


def test_a_failure_is_logged_and_the_next_ticks_try_again() -> None:
    """What serve raises ends nothing but its own thread."""
    calls = threading.Semaphore(0)

    def serve() -> int:
        calls.release()
        raise RuntimeError("on purpose")

    standby = Standby("first", serve)
    for _ in range(2):
        for _ in range(PATIENCE_TICKS):
            standby.tick(5, busy=False)
        assert calls.acquire(timeout=10)
        assert standby._thread
        standby._thread.join(10)
