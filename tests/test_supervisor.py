"""The supervisor with real processes: order, restarts, giving up, draining, and that nothing is left behind."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from configs.errors import ConfigError, DiskError, FleetError, UsageError
from ops.child import Backoff, Child, Event
from ops.roll import FLEET
from ops.supervisor import Supervisor
from routing.logs import configure_logging, without_secrets

QUICK = Backoff(base_s=0.05, cap_s=0.2, settle_s=0.2, give_up_exits=3)
FOREVER = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def python(program: str, *args: str) -> list[str]:
    return [sys.executable, "-c", program, *args]


def poll_until(supervisor: Supervisor, condition: Callable[[], object], within_s: float = 20.0) -> list[Event]:
    """Polls until the condition holds; returns all events."""
    events: list[Event] = []
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{supervisor.states} {events}"
        events += supervisor.poll()
        time.sleep(0.01)
    return events


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped by somebody does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_dead(pid: int, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while alive(pid):
        assert time.monotonic() < deadline, f"{pid} lives"
        time.sleep(0.02)


def test_order_and_drain(tmp_path: Path) -> None:
    """A child starts once the one it waits for is ready, and is drained before it; states and events tell."""
    flag = tmp_path / "flag"
    slow = python(
        "import sys, time, pathlib; time.sleep(0.3); pathlib.Path(sys.argv[1]).touch(); time.sleep(60)", str(flag)
    )
    children = [
        Child(name="server", argv=slow, ready=flag.exists),
        Child(name="worker", argv=python(FOREVER), after=("server",)),
    ]
    with Supervisor(children, QUICK, io.StringIO()) as supervisor:
        assert [state.phase for state in supervisor.states] == ["waiting", "waiting"]
        events = poll_until(supervisor, lambda: supervisor.all_ready)
        assert [(e.child, e.what) for e in events] == [
            ("server", "started"),
            ("server", "ready"),
            ("worker", "started"),
            ("worker", "ready"),
        ]
        pids = [state.pid for state in supervisor.states]
        supervisor.drain()
        events = poll_until(supervisor, lambda: supervisor.ended)
        assert [(e.child, e.what) for e in events] == [
            ("worker", "draining"),
            ("worker", "exited"),
            ("server", "draining"),
            ("server", "exited"),
        ]
        assert {state.last_exit for state in supervisor.states} == {-signal.SIGTERM}
    for pid in pids:
        assert pid
        assert not alive(pid)


def test_output_and_environment() -> None:
    """Lines reach the stream after the child's name, secrets hidden, and the added environment reaches the child."""
    stream = io.StringIO()
    program = "import os, sys; print(os.environ['REDIS_URL']); sys.stderr.write('no newline'); sys.stdout.flush()"
    url = "redis://:topsecret@h:1/0"
    child = Child(name="job", argv=python(program), env={"REDIS_URL": url}, lasting=False)
    assert "topsecret" not in repr(child)
    with Supervisor([child], QUICK, stream) as supervisor:
        poll_until(supervisor, lambda: supervisor.ended)
        assert supervisor.states[0].phase == "finished"
    assert sorted(stream.getvalue().splitlines()) == ["job | no newline", "job | redis://:***@h:1/0"]


def test_a_flood_of_output_does_not_block() -> None:
    """A child that writes megabytes ends as quickly as it is polled, and every line arrives."""
    stream = io.StringIO()
    child = Child(name="loud", argv=python("for i in range(50_000): print('x' * 80)"), lasting=False)
    with Supervisor([child], QUICK, stream) as supervisor:
        poll_until(supervisor, lambda: supervisor.ended)
    assert stream.getvalue().count("\n") == 50_000


def test_restart_with_backoff(tmp_path: Path) -> None:
    """A child killed again and again comes back with a new pid, later each time, its log appended to."""
    log = tmp_path / "logs" / "w.log"
    with Supervisor([Child(name="w", argv=python(FOREVER), log=log)], QUICK) as supervisor:
        delays = []
        for n in range(3):
            poll_until(supervisor, lambda: supervisor.all_ready)
            pid = supervisor.states[0].pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            events = poll_until(supervisor, lambda n=n: supervisor.states[0].restarts == n + 1)  # type: ignore[misc]
            delays.append(next(e.detail for e in events if e.what == "restarts"))
            assert "killed by signal 9" in next(e.detail for e in events if e.what == "exited")
        poll_until(supervisor, lambda: supervisor.all_ready)
        assert supervisor.states[0].pid != pid
        assert supervisor.states[0].last_exit == -signal.SIGKILL
    assert delays == sorted(delays)
    assert log.read_text() == "up\n" * 4


def test_gives_up_with_the_last_lines(tmp_path: Path) -> None:
    """A child that ends three times before it is ready is a FleetError that shows why; the others are drained."""
    bad = Child(name="bad", argv=python("import sys; sys.exit('no GPU here')"), log=tmp_path / "bad.log")
    good = Child(name="good", argv=python(FOREVER))
    supervisor = Supervisor([good, bad], QUICK, io.StringIO())
    seen: list[Event] = []
    with pytest.raises(FleetError, match=r"(?s)bad ended before it was ready, 3 times: exit status 1.*no GPU here"):
        supervisor.run(seen.extend)
    assert seen[-1] == Event("bad", "given up", "3 failed starts")
    assert [state.pid for state in supervisor.states] == [None, None]


def test_gives_up_at_once_on_a_mistake() -> None:
    """A child that ends with the status of a wrong configuration is not tried again; its status is passed on."""
    supervisor = Supervisor([Child(name="bad", argv=python("import sys; sys.exit(78)"))], QUICK, io.StringIO())
    with pytest.raises(FleetError, match="1 time: exit status 78") as caught:
        supervisor.run()
    assert caught.value.exit_status == ConfigError.exit_status


def test_cannot_start(tmp_path: Path) -> None:
    """A command or a log that is not there to be had is one clear line, a mistake in the order a ValueError."""
    with pytest.raises(FleetError, match="no command no-such-command"):
        Supervisor([Child(name="x", argv=["no-such-command"])], QUICK, io.StringIO()).run()
    (tmp_path / "file").write_text("")
    child = Child(name="x", argv=python(FOREVER), log=tmp_path / "file" / "x.log")
    with pytest.raises(DiskError, match="cannot write the log"):
        Supervisor([child], QUICK).run()
    with pytest.raises(ValueError, match="waits for one"):
        Supervisor([Child(name="x", argv=["true"], after=("y",))])


@pytest.mark.parametrize(("status", "n"), [(66, 1), (73, 1), (1, 1), (75, 3)])
def test_a_failed_job_is_given_up(status: int, n: int, tmp_path: Path) -> None:
    """A job's own error after it settled is final, a passing one is not; its status and last lines are passed on."""
    runs = tmp_path / "runs"
    program = (
        "import sys, time, pathlib; print('no more'); time.sleep(0.4); f = pathlib.Path(sys.argv[1]).open('a');"
        "f.write('x'); f.close(); n = pathlib.Path(sys.argv[1]).stat().st_size; sys.exit(int(sys.argv[2]) * (n < 3))"
    )
    job = Child(name="job", argv=python(program, str(runs), str(status)), lasting=False)
    supervisor = Supervisor([job], QUICK, io.StringIO())
    if status == 75:
        supervisor.run()
    else:
        with pytest.raises(FleetError, match=rf"(?s)job failed: exit status {status}; .*no more") as caught:
            poll_until(supervisor, lambda: False, within_s=10)
        assert caught.value.exit_status == status
    assert len(runs.read_text()) == n


def test_a_killed_job_is_restarted(tmp_path: Path) -> None:
    """A job that somebody kills begins again, and is finished when it ended as it should."""
    flag = tmp_path / "flag"
    program = "import sys, time, pathlib; time.sleep(0 if pathlib.Path(sys.argv[1]).exists() else 60)"
    job = Child(name="job", argv=python(program, str(flag)), lasting=False)
    with Supervisor([job], QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready)
        flag.touch()
        os.kill(supervisor.states[0].pid or 0, signal.SIGKILL)
        poll_until(supervisor, lambda: supervisor.ended)
        assert (supervisor.states[0].phase, supervisor.states[0].restarts) == ("finished", 1)


def test_retired_before_its_turn() -> None:
    """A job that is retired while it waits for another child is finished and never starts."""
    children = [
        Child(name="slow", argv=python(FOREVER), ready=lambda: False),
        Child(name="job", argv=python(FOREVER), after=("slow",), lasting=False),
    ]
    with Supervisor(children, QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.states[0].pid)
        supervisor.retire("job")
        assert supervisor.states[1].phase == "finished"
        assert supervisor.poll() == []
        assert supervisor.states[1].pid is None


@pytest.mark.parametrize("settled", [False, True])
def test_retired_without_a_handler(settled: bool) -> None:
    """A job whose process dies of the signal, because it has no handler yet, is not started again."""
    stream = io.StringIO()
    job = Child(name="job", argv=python(FOREVER), lasting=False)
    with Supervisor([job], QUICK, stream) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready if settled else supervisor.states[0].pid)
        supervisor.retire("job")
        events = poll_until(supervisor, lambda: supervisor.ended, within_s=5)
        assert [event.what for event in events if event.what != "ready"] == ["exited"]
        assert (supervisor.states[0].phase, supervisor.states[0].last_exit) == ("finished", -signal.SIGTERM)


READY_ONCE = """
import pathlib, sys, time
ready, ran, status = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
runs = len(ran.read_text()) if ran.exists() else 0
ran.write_text("x" * (runs + 1))
if runs:
    time.sleep(0.1)
    sys.exit(status)
ready.touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("status", "given_up"), [(1, "3 times"), (78, ""), (69, "")])
def test_a_restarted_child_is_not_ready_by_its_predecessor(status: int, given_up: str, tmp_path: Path) -> None:
    """The old ready file says nothing: failed starts count; a server away or a broken profile is waited for."""
    ready, ran = tmp_path / "ready", tmp_path / "ran"
    ready.touch()
    child = Child(name="w", argv=python(READY_ONCE, str(ready), str(ran), str(status)), ready_file=ready)
    with Supervisor([child], QUICK, io.StringIO()) as supervisor:
        events = poll_until(supervisor, lambda: supervisor.all_ready)
        assert [event.what for event in events] == ["started", "ready"]
        assert ran.read_text() == "x"
        os.kill(supervisor.states[0].pid or 0, signal.SIGKILL)
        if given_up:
            with pytest.raises(FleetError, match=f"w ended before it was ready, {given_up}: exit status {status}"):
                poll_until(supervisor, lambda: False)
        else:
            poll_until(supervisor, lambda: len(ran.read_text()) > QUICK.give_up_exits + 2)


def test_a_ready_file_is_its_own_process_s(tmp_path: Path) -> None:
    """A pid in the ready file that is another process's makes a child no more ready than none."""
    ready = tmp_path / "ready"
    write = "import os, pathlib, sys, time; time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} x')"
    child = Child(name="w", argv=python(f"{write}; time.sleep(60)", str(ready)), ready_file=ready)
    with Supervisor([child], QUICK, io.StringIO()) as supervisor:
        supervisor.poll()
        ready.write_text("1 x")
        supervisor.poll()
        assert not supervisor.all_ready
        poll_until(supervisor, lambda: supervisor.all_ready)
        assert ready.read_text().split()[0] == str(supervisor.states[0].pid)


def test_not_ready_in_time() -> None:
    """A child that is not ready within its time is killed, which counts as a failed start."""
    child = Child(name="slow", argv=python(FOREVER), ready=lambda: False, ready_within_s=0.2)
    with pytest.raises(FleetError, match=r"slow was not ready within 0\.2 s, 3 times: killed by signal 9"):
        Supervisor([child], QUICK, io.StringIO()).run()


def test_stubborn_child_and_its_children_are_killed(tmp_path: Path) -> None:
    """What ignores SIGTERM is killed with all that it started, within its drain time."""
    pid_file = tmp_path / "pid"
    nested = (
        "import subprocess, sys, pathlib; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]);"
        "pathlib.Path(sys.argv[2]).write_text(str(p.pid)); exec(sys.argv[1])"
    )
    stream = io.StringIO()
    child = Child(name="x", argv=python(nested, STUBBORN, str(pid_file)), drain_s=0.3)
    with Supervisor([child], QUICK, stream) as supervisor:
        poll_until(supervisor, lambda: stream.getvalue().count("up") == 2)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    assert supervisor.states[0].last_exit == -signal.SIGKILL
    wait_dead(int(pid_file.read_text()))


def test_what_a_dead_child_started_is_killed(tmp_path: Path) -> None:
    """When a child dies by itself, what it had started does not live on beside its successor."""
    pid_file = tmp_path / "pid"
    program = (
        "import subprocess, sys, pathlib, time; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]);"
        "pathlib.Path(sys.argv[2]).write_text(str(p.pid)); time.sleep(60)"
    )
    with Supervisor(
        [Child(name="x", argv=python(program, FOREVER, str(pid_file)))], QUICK, io.StringIO()
    ) as supervisor:
        poll_until(supervisor, lambda: pid_file.exists() and pid_file.read_text())
        orphan, pid = int(pid_file.read_text()), supervisor.states[0].pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        poll_until(supervisor, lambda: supervisor.states[0].restarts == 1)
        wait_dead(orphan)


def test_an_exception_leaves_nothing() -> None:
    """An exception beside the supervisor drains the children on its way out."""
    supervisor = Supervisor([Child(name="x", argv=python(FOREVER))], QUICK, io.StringIO())
    with pytest.raises(ZeroDivisionError), supervisor:  # noqa: PT012
        poll_until(supervisor, lambda: supervisor.all_ready)
        pid = supervisor.states[0].pid or 0
        _ = 1 / 0
    assert not alive(pid)


PARENT = """
import sys, time
from ops.child import Child
from ops.roll import FLEET
from ops.supervisor import Supervisor
child = Child(name="x", argv=[sys.executable, "-c", sys.argv[1]], drain_s=30)
supervisor = Supervisor([child], stream=sys.stdout)
def show(events):
    for event in events:
        if event.what == "started":
            print(event.detail, flush=True)
try:
    supervisor.run(show)
finally:
    print("over", supervisor.states[0].phase, flush=True)
"""


def start_parent(program: str) -> tuple[subprocess.Popen[str], int]:
    """A process that supervises one child; returns once the child is up, with its pid."""
    parent = subprocess.Popen(python(PARENT, program), stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline().split()[1])
    assert parent.stdout.readline() == "x | up\n"
    return parent, pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_drains(number: signal.Signals) -> None:
    """The first Ctrl-C, SIGTERM or SIGHUP drains, and run() returns in good order."""
    parent, pid = start_parent(FOREVER)
    with parent:
        parent.send_signal(number)
        assert parent.communicate(timeout=20)[0].splitlines()[-1] == "over stopped"
    assert parent.returncode == 0
    assert not alive(pid)


def test_second_signal_kills() -> None:
    """The second Ctrl-C does not wait for a child that takes its time."""
    parent, pid = start_parent(STUBBORN)
    with parent:
        begun = time.monotonic()
        parent.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert alive(pid)
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=20)
    assert time.monotonic() - begun < 10
    assert not alive(pid)


STOPPING = """
import sys, time
from ops.child import Child
from ops.interrupts import Interrupts
from ops.roll import FLEET
from ops.supervisor import Supervisor
with Interrupts().heeded() as interrupts:
    child = Child(name="x", argv=[sys.executable, "-c", sys.argv[1]], drain_s=60)
    supervisor = Supervisor([child], stream=sys.stdout, interrupts=interrupts)
    while not supervisor.all_ready:
        supervisor.poll()
    print(supervisor.states[0].pid, flush=True)
    supervisor.stop()
"""


def test_second_signal_kills_while_it_stops() -> None:
    """One who counts the signals for the supervisor hurries its stop() by the second one."""
    with subprocess.Popen(python(STOPPING, STUBBORN), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "x | up\n"
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert alive(pid)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=10) == 0
    assert not alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_killed_supervisor_leaves_nothing() -> None:
    """A supervisor that is killed takes its children with it."""
    parent, pid = start_parent(FOREVER)
    with parent:
        parent.kill()
    wait_dead(pid)


def test_secrets_are_hidden() -> None:
    """Passwords of URLs and named passwords disappear, the rest of a line stays."""
    for secret, shown in {
        "at redis://:top@secret@h:1/0, retry": "at redis://:***@h:1/0, retry",
        "sentinel://u:topsecret@a:1/0;sentinel://u:topsecret@b:2/0": "sentinel://u:***@a:1/0;sentinel://u:***@b:2/0",
        '{"url": "redis://:topsecret@h", "n": 1}': '{"url": "redis://:***@h", "n": 1}',
        "?sentinel_password=topsecret&x=1": "?sentinel_password=***&x=1",
        "http://h:80/a?b=1 me@x.org": "http://h:80/a?b=1 me@x.org",
    }.items():
        assert without_secrets(secret) == shown


def test_logging_is_json_without_secrets(tmp_path: Path) -> None:
    """structlog, the standard library and a traceback end as JSON lines with process and level, secrets hidden."""
    path = tmp_path / "logs" / "x.jsonl"
    before = logging.getLogger().handlers[:], logging.getLogger().level, structlog.get_config()
    try:
        logging.getLogger().handlers.clear()
        configure_logging("scout-s#1", "info", path=path)
        structlog.get_logger("fleet").info("started", url="redis://:topsecret@h:1/0", batch="b1")
        structlog.get_logger("fleet").debug("too small")
        logging.getLogger("celery.worker").warning("lost %s", "redis://:topsecret@h:1/0")
        try:
            int("redis://:topsecret@h:1/0")
        except ValueError:
            logging.getLogger("kombu").exception("failed")
    finally:
        for handler in logging.getLogger().handlers:
            handler.close()
        logging.getLogger().handlers[:], level, configuration = before
        logging.getLogger().setLevel(level)
        logging.captureWarnings(capture=False)
        structlog.configure(**configuration)
    assert "topsecret" not in path.read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("started", "info"),
        ("lost redis://:***@h:1/0", "warning"),
        ("failed", "error"),
    ]
    assert {line["process"] for line in lines} == {"scout-s#1"}
    assert lines[0]["batch"] == "b1"
    assert lines[2]["exception"][0]["exc_type"] == "ValueError"
    with pytest.raises(UsageError, match="loud"):
        configure_logging("x", "loud")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        configure_logging("x", path=tmp_path / "file" / "log")


#: Ready after a warm-up; told to end, it drains for a while.
TAKES_ITS_TIME = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.3)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
broken, ready = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[1])
if broken.exists():
    sys.exit("cannot start")
time.sleep(0.3)
ready.touch()
time.sleep(60)
"""


def rolling(tmp_path: Path, *, overlaps: bool) -> list[Child]:
    return [
        Child(
            name=name,
            argv=python(TAKES_ITS_TIME, str(tmp_path / name), str(tmp_path / f"{name}.broken")),
            ready_file=tmp_path / name,
            log=tmp_path / f"{name}.log",
            overlaps=overlaps,
        )
        for name in ("a", "b")
    ]


@pytest.mark.parametrize("overlaps", [True, False])
def test_a_roll_replaces_one_after_another(tmp_path: Path, overlaps: bool) -> None:
    """Each child gets a successor, the next one's turn comes then; an overlapping one works until its own is ready."""
    with Supervisor(rolling(tmp_path, overlaps=overlaps), QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready)
        before = [state.pid for state in supervisor.states]
        supervisor.roll()
        events: list[Event] = []
        while not any(event.what == "restarted" for event in events):
            events += supervisor.poll()
            # Never are both down, and never does the second one move before the first one is done.
            if not any(event.what == "replaced" for event in events):
                assert supervisor.states[1].pid == before[1]
            if overlaps:
                assert all(state.phase == "ready" for state in supervisor.states)
            time.sleep(0.01)
        order = ["started", "ready", "draining", "exited"] if overlaps else ["draining", "exited", "started", "ready"]
        assert [(e.child, e.what) for e in events] == [
            *(("a", what) for what in [*order, "replaced"]),
            *(("b", what) for what in [*order, "replaced"]),
            (FLEET, "restarted"),
        ]
        after = [state.pid for state in supervisor.states]
        assert not set(before) & set(after)
        assert [(state.restarts, state.phase) for state in supervisor.states] == [(0, "ready")] * 2
        assert not any(alive(pid) for pid in before if pid)
    assert not any(alive(pid) for pid in after if pid)


@pytest.mark.parametrize("overlaps", [True, False])
def test_a_roll_stops_where_a_successor_does_not_come_up(tmp_path: Path, overlaps: bool) -> None:
    """The roll ends there and says which; an overlapping child works on, the next child is left alone."""
    with Supervisor(rolling(tmp_path, overlaps=overlaps), QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready)
        before = [state.pid for state in supervisor.states]
        (tmp_path / "a.broken").touch()
        supervisor.roll()
        events: list[Event] = []
        while not any(event.child == FLEET for event in events):
            events += supervisor.poll()
            time.sleep(0.01)
        assert ("a", "not replaced") in [(event.child, event.what) for event in events]
        assert events[-1].what == "restart stopped"
        assert events[-1].detail.startswith("a: its successor did not come up: exit status 1")
        assert supervisor.states[1].pid == before[1]
        if overlaps:
            assert supervisor.states[0].pid == before[0]
            assert supervisor.all_ready
        (tmp_path / "a.broken").unlink()
        poll_until(supervisor, lambda: supervisor.all_ready)
        supervisor.roll()
        events = poll_until(supervisor, lambda: before[1] not in [state.pid for state in supervisor.states])
        assert ("a", "replaced") in [(event.child, event.what) for event in events]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_fleet_that_ends_while_it_rolls_leaves_nothing(tmp_path: Path, at_once: bool) -> None:
    """Drained or killed between two processes of one child, both are gone, and the roll says that it stopped."""
    with Supervisor(rolling(tmp_path, overlaps=True), QUICK, io.StringIO()) as supervisor:
        poll_until(supervisor, lambda: supervisor.all_ready)
        supervisor.roll()
        events = poll_until(supervisor, lambda: supervisor._beside)
        pids = [running.pid for running in supervisor._all]
        assert len(pids) == 3
        if at_once:
            supervisor.kill()
        else:
            supervisor.drain()
            events = poll_until(supervisor, lambda: supervisor.ended)
            assert Event(FLEET, "restart stopped", "the fleet ends") in events
        assert not any(alive(pid) for pid in pids if pid)


def test_a_second_sigterm_is_no_second_wish() -> None:
    """SIGTERM twice, as a service manager may send it, drains; Ctrl-C after it is at once."""
    parent, pid = start_parent(STUBBORN)
    with parent:
        for _ in range(2):
            parent.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert alive(pid)
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=20)
    assert not alive(pid)
