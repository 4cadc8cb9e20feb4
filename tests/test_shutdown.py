"""Shut-down under load: SIGTERM drains within a bound, Ctrl-C twice is at once, and neither loses a photo."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
import redis
from msgspec.structs import replace

from configs.profile import COLLECTOR, Delivery
from configs.serving import Server
from ops.child import Event
from ops.roll import FLEET
from ops.server import EmbeddedServer
from routing.audit import audit
from routing.ledger import PREFIX
from tests.small_fleet import DRAIN_S, FIRST, SECOND, Faults, SmallFleet, small_profile

#: What the small fleet's processes have to drain in; then they leave, which takes a few seconds more without a server.
QUICK_S = 1.0

#: A lease that a busy machine keeps: who drains in order must not be reaped.
PATIENT = small_profile(delivery=Delivery(beat_s=0.25, lease_s=6.0, backoff_s=0.1))


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
    with SmallFleet(tmp_path, server, PATIENT, faults={FIRST: slow, SECOND: slow}) as fleet:
        fleet.feed("s", 1000)
        fleet.until(lambda: holds(fleet, FIRST) and holds(fleet, SECOND))
        assert end(fleet, FIRST, SECOND, COLLECTOR) == [0, 0, 0]
        fleet.until(lambda: fleet.supervisor.all_ready)
        # As when its terminal closes.
        assert end(fleet, FIRST, number=signal.SIGHUP) == [0]
        require_balanced(fleet, redis_client, 1000)
    assert reaped(redis_client) == 0


def test_a_slow_server_is_not_waited_for(tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """A worker with hundreds of questions before it ends after those in flight; the rest is back at once."""
    tiers = PATIENT.tiers
    profile = replace(PATIENT, tiers=(replace(tiers[0], server=Server(in_flight=16)), *tiers[1:]))
    with SmallFleet(tmp_path, server, profile, faults={FIRST: Faults(answer_s=0.8)}) as fleet:
        fleet.feed("s", 400)
        fleet.until(lambda: holds(fleet, FIRST))
        begun_s = time.monotonic()
        # What it claimed is a hundred and more: 5 s and more in flights of 16.
        assert end(fleet, FIRST) == [0]
        assert time.monotonic() - begun_s < 4
        require_balanced(fleet, redis_client, 400)
    assert reaped(redis_client) == 0


def test_a_hung_device_is_not_waited_for(tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """A worker whose device hangs while it drains gives its batches back without a fault, and ends within the bound."""
    hangs = tmp_path / "hangs"
    with SmallFleet(
        tmp_path, server, PATIENT, faults={FIRST: Faults(hangs_while=str(hangs))}, env={DRAIN_S: str(QUICK_S)}
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


@pytest.mark.faults
def test_a_silent_server_is_not_waited_for(tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """Workers and collector, told to end while the server is silent, end within the bound; later nothing is lost."""
    # What they held runs apart later, one item at a time: not too slow.
    slow = Faults(slow_s=0.01)
    with SmallFleet(tmp_path, server, faults={FIRST: slow, SECOND: slow}, env={DRAIN_S: str(QUICK_S)}) as fleet:
        fleet.feed("s", 3000)
        fleet.until(lambda: holds(fleet, FIRST))
        with paused(server):
            begun_s = time.monotonic()
            end(fleet, FIRST, SECOND, COLLECTOR)
            assert time.monotonic() - begun_s < QUICK_S + 6 + 3
        require_balanced(fleet, redis_client, 3000)


@pytest.mark.faults
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


@pytest.mark.faults
def test_a_rolling_restart_pauses_no_tier(tmp_path: Path, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """Under load each process is replaced; no tier stands for as long as its worker takes to start; nothing is lost."""
    slow = Faults(slow_s=0.1)
    with SmallFleet(tmp_path, server, PATIENT, faults={FIRST: slow, SECOND: slow}) as fleet:
        fed = 0
        scored = dict.fromkeys((FIRST, SECOND), -1)
        moved_s = dict.fromkeys((FIRST, SECOND), 0.0)
        pauses_s: dict[str, list[float]] = {FIRST: [], SECOND: []}

        def step() -> bool:
            nonlocal fed
            now = fleet.ledger.snapshot([FIRST, SECOND])
            if now.use.get("items", 0) < 1000:
                fleet.feed(f"s{fed}", 500)
                fed += 500
            for tier in (FIRST, SECOND):
                if now.tallies[tier].get("scored", 0) != scored[tier]:
                    scored[tier] = now.tallies[tier].get("scored", 0)
                    pauses_s[tier].append(time.monotonic() - moved_s[tier])
                    moved_s[tier] = time.monotonic()
            return any(event.child == FLEET for event in fleet.events)

        before = [state.pid for state in fleet.supervisor.states]
        begun_s = time.monotonic()
        fleet.until(lambda: step() or time.monotonic() - begun_s > 1.0)
        for tier in (FIRST, SECOND):
            pauses_s[tier].clear()
        fleet.events.clear()
        fleet.supervisor.roll()
        fleet.until(step)
        starts_s = {e.child: float(e.detail.split()[1]) for e in fleet.events if e.what == "ready"}
        assert fleet.events[-1] == Event(FLEET, "restarted", "3 processes")
        assert not set(before) & {state.pid for state in fleet.supervisor.states}
        for tier in (FIRST, SECOND):
            assert max(pauses_s[tier]) < starts_s[tier]
        require_balanced(fleet, redis_client, fed)
    assert reaped(redis_client) == 0


class Terminal:
    """A command in a foreground group of its own, in an empty folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.said = folder / "said"
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("REDIS_", "NATIX_", "FLOWER_"))}
        with self.said.open("ab") as said:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", *arguments],
                cwd=folder,
                env=environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def ctrl_c(self) -> None:
        os.killpg(self.command.pid, signal.SIGINT)

    def until(self, done: Callable[[], object], within_s: float = 90.0) -> None:
        """Waits while the command runs."""
        begun_s = time.monotonic()
        while not done():
            assert self.command.poll() is None, self.said.read_text()
            assert time.monotonic() - begun_s < within_s, self.said.read_text()
            time.sleep(0.05)

    @property
    def left(self) -> list[str]:
        """Processes that run in the folder."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if (place / "cwd").readlink().is_relative_to(self.folder):
                    found.append((place / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.command.poll() is None:
            self.command.kill()
        self.command.wait()


def in_fleet(folder: Path) -> tuple[int, int]:
    """Photos in the fleet of the folder, and photos that ended; as its ledger says."""
    with redis.Redis.from_url((folder / "var/server/url").read_text().strip()) as client:
        audit(client).raise_for_problems()
        use, acct = client.hgetall(PREFIX + "use"), client.hgetall(PREFIX + "acct")
        return int(use.get(b"items", 0)), int(acct.get(b"verdicts", 0)) + int(acct.get(b"quarantined", 0))


def test_a_producer_does_not_wait_for_a_silent_server(tmp_path: Path, server: EmbeddedServer) -> None:
    """Told to end while the server is silent, it ends within its bound; with --run its next start goes on there."""
    quick = f"import producers.natix as n; n.DRAIN_S = {QUICK_S}; n.main()"
    command = [sys.executable, "-c", quick, "rendered:40", "--run", "r"]
    environment = {**os.environ, "REDIS_URL": server.url}
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        with subprocess.Popen(command, cwd=tmp_path, env=environment) as producer:
            while not client.hget(PREFIX + "use", "items"):
                assert producer.poll() is None
                time.sleep(0.01)
            with paused(server):
                producer.terminate()
                assert producer.wait(QUICK_S + 5) == 70
        assert subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=60).returncode == 0
        assert int(client.hget(PREFIX + "acct", "admitted") or 0) == 40
        audit(client).raise_for_problems()


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fleet_is_ended_under_load(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C twice: 130 at once; SIGTERM: drained, 0. The next fleet ends all. None leaves a process, killed too."""
    ready = [tmp_path / f"var/up/{name}.ready" for name in ("collector", "scout-s", "scout-m")]
    with Terminal(tmp_path, "up", "--flower-port", "0") as first:
        first.until(lambda: all(path.exists() for path in ready))
        with Terminal(tmp_path, "feed", "rendered:60", "--run", "r") as producer:
            # A worker has photos in hand, so a drain takes time.
            producer.until(lambda: in_fleet(tmp_path)[0] > 0)
            begun_s = time.monotonic()
            if number == signal.SIGTERM:
                for told in (producer, first):
                    told.command.terminate()
                    assert told.command.wait(20) == 0, told.said.read_text()
            else:
                for told in (first, producer) * 2:
                    told.ctrl_c()
                    time.sleep(0.1)
                assert first.command.wait(20) == 130, first.said.read_text()
                assert time.monotonic() - begun_s < 2.0
                # Perhaps it had drained, and was on its way out.
                assert producer.command.wait(20) in (0, 130, -signal.SIGINT)
    assert first.left == []
    for path in ready:
        path.unlink(missing_ok=True)
    with Terminal(tmp_path, "up", "--flower-port", "0") as second:
        second.until(lambda: all(path.exists() for path in ready))
        with Terminal(tmp_path, "feed", "rendered:60", "--run", "r") as producer:
            assert producer.command.wait(90) == 0, producer.said.read_text()
        second.until(lambda: in_fleet(tmp_path) == (0, 60))
        second.command.kill()
        second.command.wait()
        begun_s = time.monotonic()
        while second.left:
            assert time.monotonic() - begun_s < 30, second.left
            time.sleep(0.1)


@pytest.mark.faults
@pytest.mark.parametrize("while_it", ["starts", "feeds"])
def test_ctrl_c_twice_ends_a_run_at_once(tmp_path: Path, while_it: str) -> None:
    """Whether it starts or feeds: status 130 at once, and no process left."""
    with Terminal(tmp_path, "run", "--photos", "rendered:400", "--flower-port", "0") as run:
        waited_for = "server.pid" if while_it == "starts" else "journal"
        run.until(lambda: list((tmp_path / "var/run").glob(f"**/{waited_for}*")))
        run.ctrl_c()
        time.sleep(0.2)
        begun_s = time.monotonic()
        run.ctrl_c()
        assert run.command.wait(20) == 130, run.said.read_text()
        assert time.monotonic() - begun_s < 2.0
        assert run.left == []
