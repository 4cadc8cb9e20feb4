"""A whole fleet under outages: the server is full, stopped, read-only or away; all wait and go on, nothing is lost."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from configs.profile import COLLECTOR, Admission, Delivery
from ops.server import EmbeddedServer
from routing.address import ServerAddress
from routing.audit import audit
from routing.broker import make_app
from tests.small_fleet import FIRST, SECOND, Faults, SmallFleet, small_profile

#: redis-py sleeps for up to 2 s between two tries: whoever does so when the server is back must not be reaped.
PATIENT = Delivery(beat_s=0.25, lease_s=6.0, backoff_s=0.1)
#: Slow enough that an outage finds the fleet at work.
SLOW = {FIRST: Faults(slow_s=0.05), SECOND: Faults(slow_s=0.05)}


#: The producer is still at work when the outage comes.
BUSY = small_profile(delivery=PATIENT, admission=Admission(max_items=1000))


@pytest.fixture(scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallFleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with (
        EmbeddedServer(folder / "server", fsync="everysec") as server,
        SmallFleet(folder, server, BUSY, SLOW) as fleet,
    ):
        yield fleet


@pytest.fixture
def fleet(_fleet: SmallFleet) -> Iterator[SmallFleet]:
    """A fleet on a server that a test may harm; it must end with its first processes, its account balanced."""
    _fleet.until(lambda: _fleet.supervisor.all_ready)
    pids = {state.name: state.pid for state in _fleet.supervisor.states}
    yield _fleet
    _fleet.until(_fleet.done)
    hears_doorbells(_fleet, _fleet.server.address, f"after-{time.monotonic_ns()}")
    assert {state.name: state.pid for state in _fleet.supervisor.states} == pids, "a process ended itself"
    assert _fleet.ledger.snapshot([]).account.get("reaped", 0) == 0
    assert _fleet.client.info("stats")["evicted_keys"] == 0
    account = _fleet.account()
    assert account.balanced, account.problems
    audit(_fleet.client).raise_for_problems()


class Feeding(threading.Thread):
    """A producer beside the test."""

    def __init__(self, fleet: SmallFleet, source: str, count: int) -> None:
        super().__init__(daemon=True)
        self._fleet, self._source, self._count = fleet, source, count
        self.start()

    def run(self) -> None:
        self._fleet.feed(self._source, self._count)


def hears_doorbells(fleet: SmallFleet, address: ServerAddress, source: str) -> None:
    """Each Celery worker answers a ping and takes tasks again, whatever it served without a doorbell."""
    with make_app(address, fleet.profile) as app:

        def answer() -> bool:
            try:
                return len(app.control.ping(timeout=1)) == 3
            except redis.ConnectionError:
                # kombu pools connections over all applications of a process: this one is from before the outage.
                return False

        fleet.until(answer)
    before = {stop: fleet.log(stop).count(f"Task serve.{stop}[") for stop in (FIRST, SECOND, COLLECTOR)}
    fleet.feed(source, 500)
    fleet.until(fleet.done)
    fleet.until(lambda: all(fleet.log(stop).count(f"Task serve.{stop}[") > n for stop, n in before.items()))


def at_work(fleet: SmallFleet, source: str) -> Feeding:
    """A producer that feeds, and verdicts that come."""
    before = fleet.ledger.snapshot([]).account.get("verdicts", 0)
    feeding = Feeding(fleet, source, 4000)
    fleet.until(lambda: fleet.ledger.snapshot([]).account.get("verdicts", 0) > before + 200)
    return feeding


def watch(fleet: SmallFleet, for_s: float) -> None:
    """Lets the outage last, while the supervisor restarts who ends."""
    end_s = time.monotonic() + for_s
    fleet.until(lambda: time.monotonic() > end_s, within_s=for_s + 30)


@pytest.mark.faults
@pytest.mark.parametrize("stopped_s", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_server_that_says_nothing(fleet: SmallFleet, stopped_s: int) -> None:
    """Stopped by SIGSTOP at work, it makes nobody end or look dead; all go on when it does."""
    feeding = at_work(fleet, f"silent-{stopped_s}")
    pid = fleet.server.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        watch(fleet, stopped_s)
    finally:
        os.kill(pid, signal.SIGCONT)
    fleet.until(lambda: not feeding.is_alive() and fleet.done())


@pytest.mark.faults
def test_a_server_that_restarts(fleet: SmallFleet) -> None:
    """Stopped in good order and started again seconds later, it costs nothing."""
    feeding = at_work(fleet, "restarts")
    fleet.server.stop()
    watch(fleet, 2)
    fleet.server.start()
    fleet.until(lambda: not feeding.is_alive() and fleet.done())


@pytest.mark.faults
def test_a_server_that_is_read_only_for_a_while(fleet: SmallFleet) -> None:
    """As the replica of a dead master it refuses all writes; made a master again, it finds everybody waiting."""
    feeding = at_work(fleet, "read-only")
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        fleet.client.replicaof("127.0.0.1", str(dead.getsockname()[1]))
        watch(fleet, 3)
        fleet.client.replicaof("NO", "ONE")
    fleet.until(lambda: not feeding.is_alive() and fleet.done())


@pytest.mark.slow
def test_a_master_without_replicas_is_waited_for(fleet: SmallFleet) -> None:
    """Told to take writes with a replica only, and without one, it refuses every verb for a while: that passes."""
    feeding = at_work(fleet, "no-replicas")
    fleet.client.config_set("min-replicas-to-write", 1)
    watch(fleet, 3)
    fleet.client.config_set("min-replicas-to-write", 0)
    fleet.until(lambda: not feeding.is_alive() and fleet.done())


def test_a_server_without_memory(fleet: SmallFleet) -> None:
    """With maxmemory below use doorbells are refused too: the fleet drains all the same, admission waits for memory."""
    admitted = fleet.ledger.snapshot([]).account.get("admitted", 0)
    feeding = at_work(fleet, "memory")
    fleet.client.config_set("maxmemory", 500_000)
    fleet.until(fleet.done)
    assert feeding.is_alive()
    assert fleet.ledger.snapshot([]).account.get("admitted", 0) < admitted + 4000
    fleet.client.config_set("maxmemory", 0)
    fleet.until(lambda: not feeding.is_alive() and fleet.done())
