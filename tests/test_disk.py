"""A full disk: under the server's file, under the verdicts, under everything. It is waited for, and nothing is lost."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import redis

from configs.errors import DiskError
from configs.profile import COLLECTOR
from ops.child import Backoff, Child
from ops.serve import DATABASE
from ops.server import EmbeddedServer
from ops.supervisor import Supervisor
from routing.audit import audit
from tests.small_fleet import SmallFleet
from tests.test_outages import BUSY, SLOW, Feeding, at_work, watch


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Until nothing more goes in."""
        with self._ballast.open("ab", buffering=0) as file:
            for size_bytes in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size_bytes))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Space again."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    if not mount:
        pytest.skip("no mount command here")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"may not mount a small file system: {mounted.stderr.decode().strip()}")
    yield Disk(path)
    subprocess.run([str(shutil.which("umount")), "--lazy", path], check=True)


def finish(fleet: SmallFleet, feeding: Feeding) -> None:
    """There is space again: everything ends once."""
    fleet.until(lambda: not fleet.server.revive() and not feeding.is_alive() and fleet.done())
    feeding.join()
    account = fleet.account()
    assert account.balanced, account.problems
    audit(fleet.client).raise_for_problems()


@pytest.mark.faults
@pytest.mark.parametrize("fsync", ["always", pytest.param("everysec", marks=pytest.mark.slow)])
def test_under_the_server(tmp_path: Path, disk: Disk, fsync: Literal["always", "everysec"]) -> None:
    """The server refuses writes, or dies and is started again when there is space; workers and producer wait."""
    with (
        EmbeddedServer(disk.path / "server", fsync=fsync) as server,
        SmallFleet(tmp_path, server, BUSY, SLOW) as fleet,
    ):
        pids = {state.name: state.pid for state in fleet.supervisor.states}
        feeding = at_work(fleet, "s")
        disk.fill()
        if fsync == "always":
            fleet.until(lambda: server.pid is None)
            # Now and again it may start, and dies of its first write.
            for _ in range(3):
                fleet.until(lambda: not server.revive() and server.pid is None)
                watch(fleet, 0.5)
        else:
            with pytest.raises(redis.ResponseError, match="MISCONF"):
                fleet.until(lambda: not fleet.client.set("k", "v"))
            watch(fleet, 3)
        assert feeding.is_alive()
        disk.free()
        finish(fleet, feeding)
        assert {state.name: state.pid for state in fleet.supervisor.states} == pids, "a process ended itself"


@pytest.mark.faults
def test_under_the_verdicts_and_the_journal(
    tmp_path: Path, disk: Disk, server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    """The collector waits with what it has, and so does its successor; the producer waits with its line."""
    (tmp_path / "journal").symlink_to(disk.path, target_is_directory=True)
    assert redis_client.dbsize() == 0
    url = f"sqlite:///{disk.path / 'verdicts.db'}"
    with SmallFleet(tmp_path, server, BUSY, SLOW, env={DATABASE: url}) as fleet:
        fleet.database_url = url
        feeding = at_work(fleet, "s")
        disk.fill()
        fleet.until(lambda: "disk is full" in fleet.log(COLLECTOR))
        watch(fleet, 2)
        fleet.kill(COLLECTOR)
        watch(fleet, 2)
        assert feeding.is_alive()
        disk.free()
        finish(fleet, feeding)
        assert "raised unexpected" not in fleet.log(COLLECTOR)
        assert fleet.log(COLLECTOR).count('"event": "waiting"') < 10


@pytest.mark.slow
def test_under_everything_but_the_server(disk: Disk, server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """Logs and ready files too: nobody ends for want of a log line."""
    assert redis_client.dbsize() == 0
    with SmallFleet(disk.path, server, BUSY, SLOW) as fleet:
        pids = {state.name: state.pid for state in fleet.supervisor.states}
        feeding = at_work(fleet, "s")
        disk.fill()
        watch(fleet, 10)
        assert feeding.is_alive()
        disk.free()
        finish(fleet, feeding)
        assert {state.name: state.pid for state in fleet.supervisor.states} == pids, "a process ended itself"


def test_a_process_that_was_ready_may_find_its_disk_full_for_long(tmp_path: Path) -> None:
    """Ended by a DiskError at each start, as a collector that was killed meanwhile, it is not given up."""
    full, ready, starts = tmp_path / "full", tmp_path / "ready", tmp_path / "starts"
    program = (
        "import os, sys, time; from pathlib import Path; full, ready, starts = map(Path, sys.argv[1:])\n"
        "starts.open('a').write('x')\n"
        f"if full.exists(): sys.exit({DiskError.exit_status})\n"
        "ready.write_text(str(os.getpid())); time.sleep(60)"
    )
    argv = [sys.executable, "-c", program, *map(str, (full, ready, starts))]
    child = Child(name="c", argv=argv, log=tmp_path / "log", ready_file=ready)
    with Supervisor([child], backoff=Backoff(base_s=0.01, cap_s=0.02, give_up_exits=3)) as supervisor:

        def poll_until(done: Callable[[], bool]) -> None:
            end_s = time.monotonic() + 20
            while not done():
                assert time.monotonic() < end_s
                supervisor.poll()
                time.sleep(0.01)

        poll_until(lambda: supervisor.all_ready)
        full.touch()
        pid = supervisor.states[0].pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        poll_until(lambda: len(starts.read_text()) > 6)
        full.unlink()
        poll_until(lambda: supervisor.all_ready and len(starts.read_text()) > 7)
