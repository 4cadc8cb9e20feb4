"""Flower as a child: it shows the broker to who has the password, and to nobody else."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from configs.errors import BusyError, ConfigError
from ops.child import Child
from ops.flower import FlowerCommand, flower_command
from ops.server import EmbeddedServer, port_is_free
from ops.supervisor import Supervisor


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("server"), fsync="everysec") as server:
        yield server


def get(url: str, user: str = "", password: str = "", data: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of a GET, or of a POST with data; status 0 when nobody answers."""
    request = urllib.request.Request(url, data)  # noqa: S310
    if user:
        request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_shows_the_broker_behind_a_password(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a login or with a wrong one it answers 401, with it it shows the queues; SIGTERM ends it with status 0.

    Neither its arguments nor its log hold a secret, and a flowerconfig.py in the working directory has no say.
    """
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    # What a user's environment may hold, or somebody's who can set one variable: none of it opens a door.
    for name, value in (
        ("ADDRESS", "0.0.0.0"),  # noqa: S104
        ("UNIX_SOCKET", str(tmp_path / "open.sock")),
        ("READ_ONLY", "false"),
        ("DEBUG", "true"),
        ("UNAUTHENTICATED_API", "true"),
    ):
        monkeypatch.setenv(f"FLOWER_{name}", value)
    (tmp_path / "flowerconfig.py").write_text("address = '0.0.0.0'\nbasic_auth = ['a:b']\n")
    command = flower_command(server.address, free_port())
    with server.address.connect() as client:
        client.rpush("celery", "x", "y")
    stream = io.StringIO()
    child = Child(
        name="flower", argv=command.argv, env=command.env, ready=lambda: get(f"{command.url}/healthcheck")[0] == 200
    )
    with Supervisor([child], stream=stream) as supervisor:
        deadline = time.monotonic() + 30
        while not supervisor.all_ready:
            assert time.monotonic() < deadline, stream.getvalue()
            supervisor.poll()
            time.sleep(0.1)
        check_answers(command)
        arguments = Path(f"/proc/{supervisor.states[0].pid}/cmdline")
        shown = arguments.read_text() if arguments.exists() else ""
        assert listening({supervisor.states[0].pid or 0}) == {f"127.0.0.1:{command.url.rpartition(':')[2]}"}
        assert not (tmp_path / "open.sock").exists()
    assert supervisor.states[0].last_exit == 0, stream.getvalue()
    assert server.address.password
    for secret in (command.password, server.address.password):
        assert secret not in shown + stream.getvalue() + repr(command)


def listening(pids: set[int]) -> set[str]:
    """Where these processes listen, as ADDRESS:PORT, from the kernel's own tables."""
    sockets = set()
    for pid in pids:
        for open_file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                sockets.add(str(open_file.readlink()))
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                address, port = local.split(":")
                words = struct.pack(
                    f"<{len(address) // 8}I", *(int(address[i : i + 8], 16) for i in range(0, len(address), 8))
                )
                found.add(f"{socket.inet_ntop(family, words)}:{int(port, 16)}")
    return found


def check_answers(command: FlowerCommand) -> None:
    """401 without the login, the queue's length with it."""
    assert get(command.url)[0] == 401
    assert get(command.url, command.user, "wrong")[0] == 401
    assert get(f"{command.url}/api/queues/length")[0] == 401
    assert get(f"{command.url}/workers", command.user, command.password)[0] == 200
    # It shows and does nothing, also for who may look.
    for act in ("worker/shutdown/x", "worker/queue/cancel-consumer/x", "task/send-task/x", "task/revoke/x"):
        status, body = get(f"{command.url}/api/{act}", command.user, command.password, b"{}")
        assert (status, b"ead only" in body or b"ead-only" in body) == (403, True), (act, body)
    status, body = get(f"{command.url}/api/queues/length", command.user, command.password)
    assert (status, json.loads(body)["active_queues"]) == (200, [{"name": "celery", "messages": 2}])


def test_login(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login of the environment is kept, otherwise every command has its own password."""
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "me:mine,you:yours")
    command = flower_command(server.address, free_port())
    assert (command.user, command.password, command.env["FLOWER_BASIC_AUTH"]) == ("me", "mine", "me:mine")
    # A chosen password is not repeated where a log may keep it; one that was made up must be said.
    assert "mine" not in command.greeting
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "")
    command = flower_command(server.address, free_port())
    assert command.password in command.greeting
    passwords = {flower_command(server.address, free_port()).password for _ in range(3)}
    assert len(passwords) == 3
    assert min(map(len, passwords)) >= 16
    assert "FLOWER_BASIC_AUTH" in os.environ


def test_no_flower_without_a_login(server: EmbeddedServer) -> None:
    """The process itself, started by hand without a login, says so in one line and does not listen."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.flower"],
        env={**os.environ, "REDIS_URL": server.url, "FLOWER_BASIC_AUTH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (ConfigError.exit_status, 1), done.stderr
    assert "FLOWER_BASIC_AUTH" in done.stderr


def test_port_busy(server: EmbeddedServer) -> None:
    """A taken port is a BusyError before anything starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=str(port)):
            flower_command(server.address, port)
    assert port_is_free(port)
