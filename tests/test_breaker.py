"""The circuit breaker: when a server is asked again, whatever order its failures and answers come in."""

from copy import copy

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.breaker import Breaker


def opened(breaker: Breaker, now_s: float = 0.0) -> Breaker:
    """After three failures."""
    for _ in range(3):
        assert breaker.admits(now_s)
        breaker.failed(now_s)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    """Two failures, an answer, two failures: closed. A third one in a row: open."""
    breaker = Breaker(failures=3)
    for _ in range(2):
        breaker.failed(0)
    breaker.answered()
    for _ in range(2):
        breaker.failed(0)
    assert breaker.admits(0)
    breaker.failed(0)
    assert not breaker.admits(0)


def test_one_probe_decides() -> None:
    """After the pause one is admitted and no other; its answer closes it."""
    breaker = opened(Breaker(failures=3, open_s=2))
    assert not breaker.admits(1.9)
    assert breaker.admits(2.0)
    assert not breaker.admits(2.0)
    assert not breaker.admits(100.0)
    breaker.answered()
    assert [breaker.admits(100.0) for _ in range(3)] == [True] * 3


def test_a_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    """2, 4, 5, 5 seconds; after an answer 2 again."""
    breaker = opened(Breaker(failures=3, open_s=2, open_max_s=5))
    now_s = 0.0
    for pause_s in (2, 4, 5, 5):
        assert not breaker.admits(now_s + pause_s - 0.01)
        now_s += pause_s
        assert breaker.admits(now_s)
        breaker.failed(now_s)
    assert breaker.admits(now_s + 5)
    breaker.answered()
    opened(breaker, now_s)
    assert breaker.admits(now_s + 2)


def test_failures_of_questions_from_before_it_opened_change_nothing() -> None:
    """Sixty-three more that were in flight do not make the pause longer."""
    breaker = opened(Breaker(failures=3, open_s=2))
    for _ in range(63):
        breaker.failed(1.0)
    assert breaker.admits(2.0)


class AnyOrder(RuleBasedStateMachine):
    """Questions begin and end in any order, or are given up; a probe always ends, and there is one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(failures=3, open_s=1, open_max_s=8)
        self.now_s = 0.0
        self.asked = 0
        self.probing = False
        self.last_failed_s = self.now_s

    @rule(passed_s=st.floats(0, 10))
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s

    @precondition(lambda self: self.breaker.state == "closed")
    @rule()
    def ask(self) -> None:
        assert self.breaker.admits(self.now_s)
        self.asked += 1

    @precondition(lambda self: self.breaker.state != "closed" and not self.probing)
    @rule()
    def probe(self) -> None:
        self.probing = self.breaker.admits(self.now_s)

    @precondition(lambda self: self.asked)
    @rule(end=st.sampled_from(["answered", "failed", "given up"]))
    def end(self, end: str) -> None:
        self.asked -= 1
        self._tell(end)

    @precondition(lambda self: self.probing)
    @rule(end=st.sampled_from(["answered", "failed"]))
    def end_probe(self, end: str) -> None:
        self.probing = False
        self._tell(end)

    def _tell(self, end: str) -> None:
        if end == "answered":
            self.breaker.answered()
        if end == "failed":
            self.breaker.failed(self.now_s)
            self.last_failed_s = self.now_s

    @invariant()
    def never_shut_for_ever(self) -> None:
        """Without a probe somebody may ask at the latest the longest pause after the last failure."""
        if not self.probing and self.now_s > self.last_failed_s + 8:
            assert copy(self.breaker).admits(self.now_s)


TestAnyOrder = AnyOrder.TestCase
