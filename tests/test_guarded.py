"""A whole fleet under the users of ops/server.acl, as its users start it: what listens, what tells, what is refused."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Exchange

from ops.server import EmbeddedServer
from producers.scenes import DEMO_SEEDS, render
from routing.address import ServerAddress
from routing.audit import audit
from routing.ledger import Ledger
from tests.test_acl import PASSWORD, load, refusals, url
from tests.test_flower import free_port, get, listening

ROOT = Path(__file__).parents[1]
FLOWER_PASSWORD = "fl0wer-Znq"  # noqa: S105
PAGES = (
    *("/", "/workers", "/tasks", "/broker", "/metrics", "/healthcheck", "/no-such-page"),
    *("/api/workers?refresh=1", "/api/tasks", "/api/task/types", "/api/queues/length", "/api/task/info/x"),
)
REFUSED = "Refusing to deserialize untrusted content of type pickle"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


def send(address: ServerAddress, body: object, exchange: Exchange, key: str) -> None:
    """What an attacker sends who can write to the broker: pickled by kombu itself, headed like a task of ours."""
    headers = {"task": "serve.scout-s", "id": "1", "lang": "py", "argsrepr": "()", "kwargsrepr": "{}"}
    with Connection(address.broker_url) as connection, connection.channel() as channel:  # type: ignore[no-untyped-call]
        connection.Producer(channel).publish(
            body,
            exchange=exchange,
            routing_key=key,
            serializer="pickle",
            headers=headers,
            declare=[exchange] if exchange.name else [],
        )


class Box:
    """A folder with a fleet in it, on a server with users."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self.folder = folder
        self.server = server
        self.flower = f"http://127.0.0.1:{free_port()}"
        with (folder / "up.err").open("wb") as errors:
            self.fleet = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "up", "--flower-port", self.flower.rpartition(":")[2]],
                cwd=folder,
                env=self.environment("fleet"),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def environment(self, user: str) -> dict[str, str]:
        """A process's, as a user of the server."""
        return os.environ | {
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": url(self.server, user),
            "FLOWER_BASIC_AUTH": f"me:{FLOWER_PASSWORD}",
        }

    def command(self, user: str, *arguments: str) -> str:
        """A natix-fleet command as a user of the server; its output, errors included."""
        done = subprocess.run(
            [sys.executable, "-m", "ops.cli", *arguments],
            cwd=self.folder,
            env=self.environment(user),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def processes(self) -> set[int]:
        """The fleet's process and all that it started."""
        found, left = set(), {self.fleet.pid}
        while left:
            pid = left.pop()
            found.add(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                left |= set(map(int, (task / "children").read_text().split()))
        return found


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """One fleet for the tests of this file, which follow one another."""
    with EmbeddedServer(tmp_path_factory.mktemp("server"), fsync="everysec") as server:
        with server.address.connect() as client:
            load(client)
        box = Box(tmp_path_factory.mktemp("box"), server)
        try:
            deadline_s = time.monotonic() + 90
            names = ("collector", "scout-s", "scout-m")
            while not all((box.folder / f"var/up/{name}.ready").exists() for name in names) or not get(box.flower)[0]:
                assert box.fleet.poll() is None, (box.folder / "up.err").read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            yield box
        finally:
            if box.fleet.poll() is None:
                box.fleet.kill()
            box.fleet.wait()


def test_it_works_for_each_user(box: Box) -> None:
    """Photos fed and asked as producer end in verdicts, status as look says so; the server refused nothing."""
    render(DEMO_SEEDS[0])[0].save(box.folder / "a.jpg")
    assert "P(roadwork)" in box.command("producer", "ask", "a.jpg")
    said = box.command("producer", "feed", "rendered:12")
    assert "12 photos admitted" in said
    assert "doorbell not sent" not in said
    with box.server.address.connect() as admin:
        ledger = Ledger(admin)
        deadline_s = time.monotonic() + 60
        while ledger.snapshot([]).use["items"]:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert "admitted 13, ended 13 (0 quarantined" in box.command("look", "status")
        audit(admin).raise_for_problems()
        assert refusals(admin) == []


def test_a_pickle_is_refused(box: Box) -> None:
    """As a doorbell, remote control or event it is never unpickled; who reads it says so and goes on."""
    made = box.folder / "made"
    pickle.loads(pickle.dumps(Payload(made)))  # noqa: S301 - it would run
    assert made.exists()
    made.unlink()
    before = box.processes()
    ways = (
        ("scout-s", Exchange(""), "natix-fleet.scout-s"),  # type: ignore[no-untyped-call]
        ("scout-m", Exchange("celery.pidbox", type="fanout"), ""),  # type: ignore[no-untyped-call]
        ("flower", Exchange("celeryev", type="fanout"), "worker.heartbeat"),  # type: ignore[no-untyped-call]
    )
    for reader, exchange, key in ways:
        for body in (Payload(made), [[Payload(made)], {}, {}], {"method": "ping", "arguments": Payload(made)}):
            send(box.server.address, body, exchange, key)
        log = box.folder / f"var/up/{reader}.log"
        deadline_s = time.monotonic() + 30
        while REFUSED not in log.read_text():
            assert time.monotonic() < deadline_s, log.read_text()[-2000:]
            time.sleep(0.05)
    assert "P(roadwork)" in box.command("producer", "ask", "a.jpg")
    assert get(f"{box.flower}/workers", "me", FLOWER_PASSWORD)[0] == 200
    assert not made.exists()
    assert box.processes() == before


def test_only_the_loopback_listens(box: Box) -> None:
    """Of all processes of the fleet one listens, Flower, and it does on 127.0.0.1; so does the embedded server."""
    assert listening(box.processes()) == {box.flower.removeprefix("http://")}
    assert box.server.pid
    assert listening({box.server.pid}) == {f"127.0.0.1:{box.server.port}"}


def test_no_secret_shows(box: Box) -> None:
    """No password is in an argument or title of a process, a page of Flower or a file; environments are private."""
    shown = b""
    for pid in box.processes():
        shown += Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
        assert Path(f"/proc/{pid}/environ").stat().st_mode & 0o077 == 0
    assert b"ops.cli" in shown
    workers = get(f"{box.flower}/api/workers", "me", FLOWER_PASSWORD)[1].decode()
    tier = workers.partition('"scout-s-')[2].partition('"')[0]
    for page in (*PAGES, f"/worker/scout-s-{tier}"):
        status, body = get(box.flower + page, "me", FLOWER_PASSWORD)
        assert status in (200, 404)
        shown += body
    assert b"broker_url" in shown
    files = [path for path in box.folder.rglob("*") if path.is_file()]
    assert {"up.err", "flower.log", "collector.log", "scout-s.log", "verdicts.db"} <= {path.name for path in files}
    shown += b"".join(path.read_bytes() for path in files)
    for secret in (PASSWORD, FLOWER_PASSWORD, str(box.server.address.password)):
        assert secret.encode() not in shown


def test_it_ends_in_order_and_nothing_was_refused(box: Box) -> None:
    """SIGTERM drains it, and to its end no process of it needed a right that its user does not have."""
    box.fleet.send_signal(signal.SIGTERM)
    assert box.fleet.wait(60) == 0
    with box.server.address.connect() as admin:
        assert refusals(admin) == []
