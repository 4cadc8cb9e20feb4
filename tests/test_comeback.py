"""Children that come back without end, that wait for leave to start, that pause, and why a server's start failed."""

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from configs.errors import BusyError, FleetError
from configs.profile import Profile, Tier
from configs.serving import Server
from ops import lmcache
from ops.child import Backoff, Child
from ops.comeback import given_up
from ops.fleet import fleet_children
from ops.lmcache import BLOCKS_VARIABLE, NOT_THEIRS, lmcache_children
from ops.roll import FLEET
from ops.running import Running
from ops.serve import DATABASE
from ops.supervisor import Supervisor
from ops.vllm_children import Health, Life, Servers, _child, _stands, cause
from ops.vllm_server import ServerCommand
from routing.address import parse_address
from tests.test_supervisor import FOREVER, alive, poll_until, python
from tests.vllm.real_server import free_port
from workers.served import KEY_VARIABLE

QUICK = Backoff(base_s=0.05, cap_s=0.1, settle_s=0.2, give_up_exits=2)
#: Ready at once as long as the file is there; without it, it ends before it is ready.
WHILE = (
    "import os, sys, time\n"
    "if not os.path.exists(sys.argv[1]): sys.exit('no weights')\n"
    "print('up', flush=True); time.sleep(60)"
)


def never() -> bool:
    """A busy machine takes longer to end a child than a child without a readiness check takes to count as ready."""
    return False


def phase(supervisor: Supervisor, name: str) -> str:
    return next(state.phase for state in supervisor.states if state.name == name)


def test_an_endless_child_comes_back_however_often_it_fails(tmp_path: Path) -> None:
    """Ready once, it is tried again past any bound; whoever came after it starts without it meanwhile."""
    weights = tmp_path / "weights"
    weights.touch()
    server = Child(name="server", argv=python(WHILE, str(weights)), endless=True)
    worker = Child(name="worker", argv=python(FOREVER), after=("server",))
    with Supervisor([server, worker], QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready)
        weights.unlink()
        for state in supervisor.states:
            assert state.pid
            os.kill(state.pid, signal.SIGKILL)
        poll_until(supervisor, lambda: supervisor.states[0].restarts > 6)
        poll_until(supervisor, lambda: phase(supervisor, "worker") == "ready")
        weights.touch()
        poll_until(supervisor, lambda: supervisor.all_ready)
        pid = supervisor.states[0].pid
        supervisor.roll()
        events = poll_until(supervisor, lambda: supervisor._roll is None)
        assert [e.child for e in events if e.what == "replaced"] == ["worker"]
        assert events[-1].child == FLEET
        assert supervisor.states[0].pid == pid, "a restart of the fleet leaves its servers alone"


def test_a_first_start_that_fails_is_its_last() -> None:
    """Nothing is tried again that costs minutes and ends the same way."""
    child = Child(name="server", argv=python("import sys; sys.exit('no weights')"), ready=never, endless=True)
    supervisor = Supervisor([child], QUICK, io.StringIO())
    with pytest.raises(FleetError, match=r"(?s)server ended before it was ready, 1 time: exit status 1.*no weights"):
        supervisor.run()


def test_a_child_waits_for_leave() -> None:
    """It is asked for at each poll, and only when the child is due."""
    leave, asked = False, 0

    def may_start() -> bool:
        nonlocal asked
        asked += 1
        return leave

    first = Child(name="first", argv=python("import time; time.sleep(0.2)"), lasting=False)
    children = [first, Child(name="server", argv=python(FOREVER), after=("first",), may_start=may_start)]
    with Supervisor(children, QUICK, io.StringIO()) as supervisor:
        supervisor.poll()
        assert asked == 0
        poll_until(supervisor, lambda: asked > 3)
        assert phase(supervisor, "server") == "waiting"
        leave = True
        poll_until(supervisor, lambda: supervisor.all_ready)


def test_pause_and_resume() -> None:
    """A paused child drains and counts as ready; it starts again when asked, and a fleet can end while it is paused."""
    with Supervisor(
        [Child(name="panel", argv=python(FOREVER)), Child(name="next", argv=python(FOREVER), after=("panel",))],
        QUICK,
        io.StringIO(),
    ) as supervisor:
        supervisor.pause("panel")
        poll_until(supervisor, lambda: supervisor.all_ready)
        assert [state.phase for state in supervisor.states] == ["paused", "ready"]
        assert supervisor.states[0].pid is None
        supervisor.resume("panel")
        poll_until(supervisor, lambda: phase(supervisor, "panel") == "ready")
        pid = supervisor.states[0].pid
        supervisor.pause("panel")
        events = poll_until(supervisor, lambda: phase(supervisor, "panel") == "paused")
        assert [e.what for e in events if e.child == "panel"] == ["draining", "exited"]
        assert pid
        assert not alive(pid)
        # Wanted again before it is gone.
        supervisor.resume("panel")
        poll_until(supervisor, lambda: phase(supervisor, "panel") == "ready")
        supervisor.pause("panel")
        supervisor.resume("panel")
        poll_until(supervisor, lambda: phase(supervisor, "panel") == "ready")
        assert supervisor.states[0].restarts == 0
        supervisor.pause("panel")
    assert supervisor.ended


@contextmanager
def silent_port() -> Iterator[int]:
    """It takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        port: int = server.getsockname()[1]
        try:
            yield port
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


def test_a_port_that_never_answers_is_no_healthy_server() -> None:
    """Given up when its time is over; the others are looked after meanwhile."""
    threads = threading.active_count()
    with silent_port() as port:
        health = Health(f"http://127.0.0.1:{port}/health")
        hung = Child(name="hung", argv=python(FOREVER), ready=health, ready_within_s=2.5, endless=True)
        polled_s: list[float] = []

        def tend(_: object) -> None:
            polled_s.append(time.monotonic())

        with pytest.raises(FleetError, match=r"(?s)hung was not ready within 2.5 s, 1 time.*\n  up"):
            Supervisor([hung], QUICK, io.StringIO()).run(tend)
        between_s = [after - before for before, after in pairwise(polled_s)]
        assert max(between_s) < 1.5
    assert threading.active_count() == threads


#: Serves 200 on the port it is told, until it is told to hang: by SIGUSR1 it answers nobody any more.
SERVES = """
import http.server, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_that_hangs_is_killed_and_comes_back(tmp_path: Path) -> None:
    """Not at the first look in vain, not while it answers; the poll waits for none of its answers."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    argv = python(SERVES, str(port))
    server = Child(
        name="server", argv=argv, ready=Health(url), alive=partial(Life, url, 0.3), endless=True, log=tmp_path / "l"
    )
    with Supervisor([server], QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready)
        pid = supervisor.states[0].pid
        assert pid
        until_s = time.monotonic() + 2.0
        assert not poll_until(supervisor, lambda: time.monotonic() > until_s)
        os.kill(pid, signal.SIGUSR1)
        begun_s = polled_s = time.monotonic()
        while not (events := supervisor.poll()):
            now_s = time.monotonic()
            assert now_s - polled_s < 0.25
            assert now_s - begun_s < 20
            polled_s = now_s
            time.sleep(0.01)
        assert [(e.what, e.detail) for e in events] == [("killed", "it does not answer")]
        assert time.monotonic() - begun_s > 0.6
        poll_until(supervisor, lambda: supervisor.states[0].restarts == 1 and supervisor.all_ready)


def test_a_server_that_comes_back_is_not_ended_for_its_forerunners_silence(tmp_path: Path) -> None:
    """The third look was in flight when it crashed, and fails by that: it says nothing of the next run."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    lives: list[Life] = []

    def life() -> Life:
        lives.append(Life(url, 0.5))
        return lives[-1]

    server = Child(
        name="s", argv=python(SERVES, str(port)), ready=Health(url), alive=life, endless=True, log=tmp_path / "l"
    )
    with Supervisor([server], QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready)
        pid = supervisor.states[0].pid
        assert pid
        os.kill(pid, signal.SIGUSR1)
        poll_until(supervisor, lambda: lives[0]._silent == 2 and bool(lives[0]._look and lives[0]._look.is_alive()))
        os.kill(pid, signal.SIGKILL)
        events = poll_until(supervisor, lambda: supervisor.states[0].restarts == 1 and supervisor.all_ready)
        assert lives[0]._silent == 3
        until_s = time.monotonic() + 1.0
        events += poll_until(supervisor, lambda: time.monotonic() > until_s)
        assert [event.what for event in events if event.what in {"exited", "killed"}] == ["exited"]


def test_a_server_that_does_not_follow_gives_its_device_to_others() -> None:
    """What may be ended is ready; one that starts, or was ended just now, is left alone."""
    child = Child(name="server", argv=python(FOREVER), endless=True)
    with Supervisor([child], QUICK, io.StringIO()) as supervisor:
        supervisor.end("server", "early")
        assert supervisor.poll()[0].what == "started"
        poll_until(supervisor, lambda: supervisor.all_ready)
        supervisor.end("server", "it never sleeps")
        supervisor.end("server", "it never sleeps")
        events = poll_until(supervisor, lambda: supervisor.states[0].restarts == 1)
        assert [e.detail for e in events if e.what == "killed"] == ["it never sleeps"]
        poll_until(supervisor, lambda: supervisor.all_ready)


def test_a_start_that_is_broken_off_again_and_again_is_given_up() -> None:
    """However long each took."""
    running = Running(Child(name="worker", argv=["x"]), io.StringIO(), 1)
    running.last_exit = -signal.SIGKILL
    ends = []
    for i in range(Backoff.give_up_exits):
        running.started = i * 140.0
        ends.append(given_up(running, Backoff(), running.started + 121.0, was_ready=False))
    assert ends[:-1] == [None] * (Backoff.give_up_exits - 1)
    assert ends[-1] == ("worker was not ready within 120 s, 5 times", None)


def test_the_worker_of_a_served_tier_waits_as_long_as_its_server_may_take(tmp_path: Path) -> None:
    """It is not killed before; other workers have their two minutes."""
    server = Server(url="http://127.0.0.1:9", start_within_s=500.0)
    tiers = (
        Tier(name="vlm", model="qwen3-vl-4b-instruct", device="cuda:0", server=server),
        Tier(name="s", model="scout-s"),
    )
    profile = Profile(name="x", tiers=tiers)
    address = parse_address("redis://127.0.0.1:1/0", "REDIS_URL")
    children = fleet_children(profile, "x", address, tmp_path, {}, None, servers=Servers())
    assert {child.name: child.ready_within_s for child in children} == {"collector": 120, "vlm": 560, "s": 120}


def test_servers_do_not_get_the_fleets_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither vLLM nor LMCache nor its Valkey; the rest of the environment they do get."""
    secrets = {"REDIS_URL", KEY_VARIABLE, BLOCKS_VARIABLE, DATABASE, "VLLM_API_KEY", "FLOWER_BASIC_AUTH"}
    assert secrets <= set(NOT_THEIRS)
    for name in (*NOT_THEIRS, "HARMLESS"):
        monkeypatch.setenv(name, "inherited-of-the-fleet")
    argv = python("import os; print([n for n, v in os.environ.items() if v == 'inherited-of-the-fleet'], flush=True)")
    command = ServerCommand("some-vlm", (), {}, "http://127.0.0.1:1", "http://127.0.0.1:1/health")
    for name in ("PORT", "HTTP_PORT"):
        monkeypatch.setattr(lmcache, name, free_port())
    tiers = (Tier(name="vlm", model="qwen3-vl-4b-instruct", server=Server(lmcache=True, block_size=32)),)
    children = lmcache_children(Profile(name="x", tiers=tiers), "python", tmp_path, None, environ={})
    for child in (*children, _child("vlm-server", command, tmp_path, (), 1.0)):
        stream = io.StringIO()
        job = replace(child, argv=argv, log=None, ready=None, alive=None, lasting=False, after=())
        Supervisor([job], QUICK, stream).run()
        assert stream.getvalue().strip() == f"{child.name} | ['HARMLESS']"


def test_a_port_that_somebody_else_has() -> None:
    """It is said before anything starts, whatever it is that is there; a free one is nothing to say."""
    with silent_port() as port:
        url = f"http://127.0.0.1:{port}"
        command = ServerCommand("some-vlm", (), {}, url, f"{url}/health")
        with pytest.raises(BusyError, match=f"'vlm': its server's port {port} is taken by something that is no VLM"):
            _stands("vlm", command)
    assert not _stands("vlm", command)


TRACEBACK = """\
(APIServer pid=1) WARNING 11-23 16:48:06 [utils.py:255] errors like `OSError: [Errno 24]` may come
(Worker pid=3) ERROR 11-23 16:48:51 [executor.py:1063] Traceback (most recent call last):
(Worker pid=3) ERROR 11-23 16:48:51 [executor.py:1063]   File "x.py", line 1, in f
(Worker pid=3) ERROR 11-23 16:48:51 [executor.py:1063] torch.OutOfMemoryError: tried to allocate 9 GiB
(EngineCore pid=2) ERROR 11-23 16:48:51 [core.py:1510] RuntimeError: Worker failed with error 'tried to'
Traceback (most recent call last):
  File "y.py", line 1, in g
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_cause_is_the_first_exception(tmp_path: Path) -> None:
    """What vLLM's worker says, not what those say who only saw it end; it is shown before the last lines."""
    found = cause(TRACEBACK.splitlines())
    assert [line.rpartition("] ")[2] for line in found] == ["torch.OutOfMemoryError: tried to allocate 9 GiB"]
    assert cause(["all is well"]) == []
    two = cause(["pydantic.ValidationError: 1 validation error", "  Value error, too long", "    For more, see"])
    assert two[:2] == ["pydantic.ValidationError: 1 validation error", "  Value error, too long"]
    program = f"import sys; print({TRACEBACK!r}, 'later\\n' * 40); sys.exit(1)"
    child = Child(name="server", argv=python(program), log=tmp_path / "log", ready=never, endless=True, cause=cause)
    with pytest.raises(FleetError) as caught:
        Supervisor([child], QUICK).run()
    lines = str(caught.value).splitlines()
    assert "OutOfMemoryError" in lines[1]
    assert len(lines) == 1 + 1 + 12
