"""Shut-down under load: SIGTERM drains within a bound, Ctrl-C twice is at once, and neither loses a photo."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from configs.profile import COLLECTOR
from ops.server import EmbeddedServer
from routing.audit import audit
from routing.ledger import PREFIX
from tests.small_fleet import DRAIN_S, FIRST, SECOND, Faults, SmallFleet

#: What the small fleet's processes have to drain in; then they leave, which takes a few seconds more without a server.
QUICK_S = 1.0


def reaped(client: redis.Redis) -> int:
    """Batches that went back because their owner was silent."""
    return int(client.hget(PREFIX + "acct", "reaped") or 0)


def end(fleet: SmallFleet, *names: str, number: signal.Signals = signal.SIGTERM, within_s: float = 20.0) -> list[int]:
    """Asks processes to end; their exit statuses, once the supervisor saw them gone."""
    pids = [fleet.kill(name, number) for name in names]
    fleet.until(lambda: not {state.pid for state in fleet.supervisor.states} & set(pids), within_s)
    ended = {state.name: state.last_exit for state in fleet.supervisor.states}
    return [-999 if (status := ended[name]) is None else status for name in names]


def holds(fleet: SmallFleet, tier: str) -> bool:
    """Whether a worker of the tier has claimed something."""
    return fleet.ledger.snapshot([]).use.get(f"held:{tier}", 0) > 0


def require_balanced(fleet: SmallFleet, client: redis.Redis, admitted: int) -> None:
    """Waits for every photo's end; none is lost or counted twice, and the ledger is sound."""
    fleet.until(fleet.done)
    audit(client).raise_for_problems()
    account = fleet.account()
    assert account.balanced, account.problems
    assert (account.admitted, account.lost, account.counted_twice) == (admitted, 0, 0)


def test_sigterm_under_load_drains(tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """A worker of each tier and the collector, told to end under load, end in order: nothing to reap, nothing lost."""
    slow = Faults(slow_s=0.2)
    with SmallFleet(tmp_path, server, faults={FIRST: slow, SECOND: slow}) as fleet:
        fleet.feed("s", 1000)
        fleet.until(lambda: holds(fleet, FIRST) and holds(fleet, SECOND))
        assert end(fleet, FIRST, SECOND, COLLECTOR) == [0, 0, 0]
        fleet.until(lambda: fleet.supervisor.all_ready)
        # As when its terminal closes.
        assert end(fleet, FIRST, number=signal.SIGHUP) == [0]
        require_balanced(fleet, redis_client, 1000)
    assert reaped(redis_client) == 0


def test_a_hung_device_is_not_waited_for(tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """A worker whose device hangs while it drains gives its batches back without a fault, and ends within the bound."""
    hangs = tmp_path / "hangs"
    with SmallFleet(
        tmp_path, server, faults={FIRST: Faults(hangs_while=str(hangs))}, env={DRAIN_S: str(QUICK_S)}
    ) as fleet:
        hangs.touch()
        fleet.feed("s", 300)
        fleet.until(lambda: holds(fleet, FIRST))
        begun_s = time.monotonic()
        assert end(fleet, FIRST) == [70]
        assert QUICK_S <= time.monotonic() - begun_s < QUICK_S + 3
        assert not [bid for bid in redis_client.scan_iter(PREFIX + "b:*") if redis_client.hget(bid, "apart") != b"0"]
        hangs.unlink()
        require_balanced(fleet, redis_client, 300)
    assert reaped(redis_client) == 0


@contextmanager
def paused(server: EmbeddedServer) -> Iterator[None]:
    """The server takes connections and says nothing."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_silent_server_is_not_waited_for(tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """Workers and collector, told to end while the server is silent, end within the bound; later nothing is lost."""
    slow = Faults(slow_s=0.1)
    with SmallFleet(tmp_path, server, faults={FIRST: slow, SECOND: slow}, env={DRAIN_S: str(QUICK_S)}) as fleet:
        fleet.feed("s", 800)
        fleet.until(lambda: holds(fleet, FIRST))
        with paused(server):
            begun_s = time.monotonic()
            end(fleet, FIRST, SECOND, COLLECTOR)
            assert time.monotonic() - begun_s < QUICK_S + 6 + 3
        require_balanced(fleet, redis_client, 800)


def test_a_second_ctrl_c_ends_a_worker_at_once(
    tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    """Ctrl-C twice in a worker's terminal: status 130 within a second, and its batches go to another worker."""
    hangs = tmp_path / "hangs"
    with SmallFleet(tmp_path, server, faults={FIRST: Faults(hangs_while=str(hangs))}) as fleet:
        hangs.touch()
        fleet.feed("s", 300)
        fleet.until(lambda: holds(fleet, FIRST))
        # The supervisor gave it a session of its own: its group is what a terminal would signal.
        group = fleet.pid(FIRST)
        os.killpg(group, signal.SIGINT)
        time.sleep(0.3)
        fleet.supervisor.poll()
        assert fleet.pid(FIRST) == group
        begun_s = time.monotonic()
        assert end(fleet, FIRST, number=signal.SIGINT) == [130]
        assert time.monotonic() - begun_s < 1.0
        hangs.unlink()
        require_balanced(fleet, redis_client, 300)
    # It had no time to give them back.
    assert reaped(redis_client) > 0
