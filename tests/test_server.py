"""The embedded server: it answers, keeps what it acknowledged, hides its password and shares nothing."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from configs.errors import BusyError, DiskError, ServerError
from ops.lock import RunLock
from ops.server import EmbeddedServer, port_is_free
from routing.server_check import require_server


def test_start_and_stop(tmp_path: Path) -> None:
    """It answers on the loopback interface with the settings of the promise, and is gone after stop."""
    with EmbeddedServer(tmp_path, maxmemory_bytes=64_000_000) as server, server.address.connect() as client:
        require_server(client)
        for name, value in {
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory": "64000000",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
        }.items():
            assert client.config_get(name) == {name: value}
        pid = server.pid
        assert pid
        assert (tmp_path / "server.pid").read_text().strip() == str(pid)
    assert server.pid is None
    assert port_is_free(server.port)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()


def test_password(tmp_path: Path) -> None:
    """Without the password nobody gets in; it stands in no argument, repr or log, and in files of mode 0600 only."""
    with EmbeddedServer(tmp_path / "data", fsync="everysec") as server:
        password = server.address.password
        assert password
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            stranger.ping()
        server.write_url(tmp_path / "deep" / "url")
        assert (tmp_path / "deep" / "url").read_text().strip() == server.url
        command = Path(f"/proc/{server.pid}/cmdline")
        if command.exists():
            assert password.encode() not in command.read_bytes()
        assert password not in repr(server)
        holders = [path for path in tmp_path.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
        assert {path.name for path in holders} == {"server.conf", "url"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


def test_acknowledged_writes_survive_a_crash(tmp_path: Path) -> None:
    """After SIGKILL, every write that was answered is there again, under the same URL."""
    server = EmbeddedServer(tmp_path)
    server.start()
    url = server.url
    try:
        with server.address.connect() as client:
            for i in range(200):
                client.set(f"k{i}", i)
            server.kill()
            server.start()
            assert server.url == url
            assert client.dbsize() == 200
    finally:
        server.stop()


def fill(client: redis.Redis) -> None:
    """Writes 20 MB."""
    for i in range(100):
        client.set(f"k{i}", b"x" * 200_000)


def test_full_memory_refuses(tmp_path: Path) -> None:
    """Beyond its memory it refuses writes and evicts nothing."""
    with EmbeddedServer(tmp_path, fsync="everysec", maxmemory_bytes=8_000_000) as server:
        with server.address.connect() as client, pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(client)
        with server.address.connect() as client:
            assert client.info("stats")["evicted_keys"] == 0
            assert client.dbsize() > 10


def test_port_busy(tmp_path: Path) -> None:
    """A port that somebody has is a BusyError that names it, and nothing is left running or locked."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_is_free(port)
        server = EmbeddedServer(tmp_path, port=port)
        with pytest.raises(BusyError, match=str(port)):
            server.start()
        assert server.pid is None
    server.start()
    assert server.port == port
    server.stop()


def test_one_server_a_folder(tmp_path: Path) -> None:
    """A second server on a folder is refused as long as the first lives, and welcome afterwards."""
    second = EmbeddedServer(tmp_path)
    with EmbeddedServer(tmp_path):
        with pytest.raises(BusyError, match=rf"another owner of this folder \(pid {os.getpid()}\)"):
            second.start()
        assert second.pid is None
    with second:
        pass


def test_unwritable_folder(tmp_path: Path) -> None:
    """A folder that cannot be made is a DiskError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file"):
        EmbeddedServer(tmp_path / "file" / "data").start()


def test_failure_shows_the_log(tmp_path: Path) -> None:
    """A server that ends at once is a ServerError that holds the last lines of its log, and can be started later."""
    server = EmbeddedServer(tmp_path, maxmemory_bytes=-1)
    with pytest.raises(ServerError, match=r"(?s)ended at once.*maxmemory"):
        server.start()
    server.maxmemory_bytes = None
    with server:
        assert server.pid


def orphan_server(folder: Path, *, tied: bool) -> int:
    """Starts a server from a process that is then killed; returns the server's pid."""
    program = (
        "import sys, time; from pathlib import Path; from ops.server import EmbeddedServer\n"
        "server = EmbeddedServer(Path(sys.argv[1]), tied_to_parent=bool(int(sys.argv[2])))\n"
        "server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(int(tied))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout
        lines = iter(parent.stdout.readline, b"")
        pid = int(next(line for line in lines if line.strip().isdigit()))
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
    return pid


def test_a_server_that_outlives_its_parent_keeps_its_folder(tmp_path: Path) -> None:
    """A server that is not tied lives on when its parent is killed, and no second one may write its files."""
    pid = orphan_server(tmp_path, tied=False)
    try:
        with pytest.raises(BusyError, match="another owner of this folder"):
            EmbeddedServer(tmp_path).start()
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed takes its server with it, and the folder is free again."""
    pid = orphan_server(tmp_path, tied=True)
    deadline = time.monotonic() + 10
    while True:
        try:
            with EmbeddedServer(tmp_path) as server:
                assert server.pid != pid
            break
        except BusyError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_run_lock(tmp_path: Path) -> None:
    """A second run is refused with the first one's pid and command, also when the first dies it is free at once."""
    path = tmp_path / "var" / "run.lock"
    program = (
        "import sys, time; from pathlib import Path; from ops.lock import RunLock\n"
        "RunLock(Path(sys.argv[1]), 'natix-fleet up demo').take(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match=rf"another run \(pid {holder.pid}\) is going on: natix-fleet up demo"):
            RunLock(path).take()
        holder.kill()
    with RunLock(path), pytest.raises(BusyError):
        RunLock(path).take()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        RunLock(tmp_path / "file" / "run.lock").take()
