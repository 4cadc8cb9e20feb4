"""The circuit breaker: when a server is asked again, whatever order its failures and answers come in."""

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


def test_a_probe_that_is_given_up_is_put_again() -> None:
    """Its question was cancelled: the next one is the probe, without another pause."""
    breaker = opened(Breaker(failures=3, open_s=2))
    assert breaker.admits(2)
    breaker.dropped(probe=False)
    assert not breaker.admits(2)
    breaker.dropped(probe=True)
    assert breaker.admits(2)
    assert not breaker.admits(2)


def test_failures_of_questions_from_before_it_opened_change_nothing() -> None:
    """Sixty-three more that were in flight do not make the pause longer."""
    breaker = opened(Breaker(failures=3, open_s=2))
    for _ in range(63):
        breaker.failed(1.0)
    assert breaker.admits(2.0)


class AnyOrder(RuleBasedStateMachine):
    """Questions begin and end in any order; beside the breaker, what is known of them."""

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

    @rule()
    def ask(self) -> None:
        admitted = self.breaker.admits(self.now_s)
        self.asked += admitted
        self.probing |= admitted and self.breaker.state == "half-open"

    @precondition(lambda self: self.asked)
    @rule(end=st.sampled_from(["answered", "failed", "dropped"]), probe=st.booleans())
    def end(self, end: str, probe: bool) -> None:
        probe = self.probing and (probe or self.asked == 1)
        self.asked -= 1
        self.probing &= not probe
        if end == "failed":
            self.breaker.failed(self.now_s)
            self.last_failed_s = self.now_s
        elif end == "answered":
            self.breaker.answered()
        else:
            self.breaker.dropped(probe=probe)

    @invariant()
    def never_shut_for_ever(self) -> None:
        """With nothing in flight somebody may ask at the latest the longest pause after the last failure."""
        if not self.asked and self.now_s > self.last_failed_s + 8:
            was = self.breaker.state
            assert self.breaker.admits(self.now_s)
            if was != "closed":
                self.breaker.dropped(probe=True)


TestAnyOrder = AnyOrder.TestCase
