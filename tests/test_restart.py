"""Requests for a rolling restart, as the fleet hears them and tells of them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.child import Event
from ops.restart import TOLD, RestartRequests
from ops.roll import FLEET


@pytest.fixture(autouse=True)
def _own_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_request_during_a_restart_is_another_restart(tmp_path: Path) -> None:
    """Who asks while one goes on is not told of that one's end: another begins after it, and its end is told."""
    requests = RestartRequests(tmp_path)
    assert not requests.take()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert requests.take()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert not requests.take()
    requests.tell([Event("w", "replaced", "1"), Event(FLEET, "restarted", "1 processes")])
    assert (tmp_path / TOLD).read_text() == "w replaced: 1\n"
    assert requests.take()
    requests.tell([Event("w", "replaced", "2"), Event(FLEET, "restarted", "1 processes")])
    assert (tmp_path / TOLD).read_text().splitlines()[-1] == f"{FLEET} restarted: 1 processes"
    assert not requests.take()


def test_a_tier_may_be_called_fleet(tmp_path: Path) -> None:
    """What happens to a process of the name that stands for the whole is not taken for the end of the restart."""
    requests = RestartRequests(tmp_path)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert requests.take()
    requests.tell([Event(FLEET, "started", "pid 1"), Event(FLEET, "replaced", "by pid 1")])
    requests.tell([Event("w", "replaced", "by pid 2")])
    assert (tmp_path / TOLD).read_text().splitlines()[-1] == "w replaced: by pid 2"
