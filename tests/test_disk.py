"""A full disk: under the server's file, under the verdicts, under everything. It is waited for, and nothing is lost."""

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import redis

from configs.profile import COLLECTOR
from ops.serve import DATABASE
from ops.server import EmbeddedServer
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
