"""Keeps a fleet's processes running: starts them in order, restarts what dies, drains them, leaves none behind.

One thread, no callbacks from elsewhere: whoever owns the supervisor calls ``poll`` a few times a second, beside a
progress display for instance. Each child leads a session of its own, so Ctrl-C in the terminal reaches the supervisor
only, and what a child started dies with the child.
"""

import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self, TextIO

from configs.errors import ConfigError, DiskError, FleetError, UsageError
from routing.logs import without_secrets

POLL_INTERVAL_S = 0.05

#: A mistake in the configuration does not heal by trying again.
_HOPELESS = {UsageError.exit_status, ConfigError.exit_status}
_LAST_LINES = 12
#: A killed process that is still there after this many seconds is left to the kernel.
_STUCK_S = 10.0
_TAIL_BYTES = 8192

# Runs in the child, then becomes the command: PR_SET_PDEATHSIG (1) survives exec. Setting it between fork and exec
# (preexec_fn) can deadlock in a process with threads. Python ignores SIGPIPE and SIGXFSZ; the command must not.
_TIE = """
import ctypes, os, signal, sys
parent, number, *argv = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(number), 0, 0, 0)
if os.getppid() != int(parent):
    sys.exit("the parent ended before its child began")
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
os.execvp(argv[0], argv)
"""


def tied(argv: Sequence[str], number: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command, made to get a signal when the thread that starts it ends, even by SIGKILL.

    Linux only; elsewhere the command comes back as it is. It costs 20-30 ms at start. The thread matters: start such
    a child from one that lives as long as the process.
    """
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), str(int(number)), *argv]


@dataclass(frozen=True, kw_only=True)
class Child:
    """What is to run. Secrets go into ``env``, never into ``argv``."""

    name: str
    argv: Sequence[str]
    #: Added to this process's environment.
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: A file that its output is appended to; None: line by line to the supervisor's stream.
    log: Path | None = None
    #: Children that must be ready before it starts, and that outlive it in a drain.
    after: tuple[str, ...] = ()
    #: Asked at every poll, so it must be quick; None: it is ready once it has lived for the settle time.
    ready: Callable[[], bool] | None = field(default=None, repr=False)
    #: Not ready by then: killed, a failed start.
    ready_within_s: float = 120.0
    #: From SIGTERM to SIGKILL.
    drain_s: float = 30.0
    #: Whether to restart it also when it ends with status 0.
    lasting: bool = True


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """When a dead child is started again: base, doubled at each death up to the cap, half of it by chance."""

    base_s: float = 0.5
    cap_s: float = 30.0
    #: A child that lived this long and was ready begins again at the base.
    steady_s: float = 60.0
    #: Life after which a child without a readiness check counts as ready.
    settle_s: float = 1.0
    #: So many exits before it was ready, within so many seconds: given up.
    give_up_exits: int = 5
    give_up_within_s: float = 120.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a child: started, ready, exited, restarts, given up, draining, killed or stuck."""

    child: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class ChildState:
    """A child at one moment."""

    name: str
    #: None while it does not run.
    pid: int | None
    #: waiting, starting, ready, backing off, draining, finished (ended as it should) or stopped.
    phase: str
    restarts: int
    #: Its last exit status, or the negative number of the signal that ended it; None before the first exit.
    last_exit: int | None


class _Running:
    """A child with its process; ``phase``, ``due`` and the counters are the supervisor's notes on it."""

    def __init__(self, child: Child, stream: TextIO, width: int) -> None:
        self.child = child
        self.phase = "waiting"
        #: Monotonic time of the next start, or of the kill while it drains.
        self.due = 0.0
        self.started = 0.0
        self.restarts = 0
        self.failures = 0
        self.failed_starts: list[float] = []
        self.last_exit: int | None = None
        #: Monotonic time of the first SIGKILL of this run; 0 before it.
        self.killed = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._stream = stream
        self._prefix = f"{child.name:<{width}} | "
        self._partial = b""
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process's id, which is its process group's too; None while it does not run."""
        return self._process.pid if self._process else None

    @property
    def state(self) -> ChildState:
        """What others may know of it."""
        return ChildState(self.child.name, self.pid, self.phase, self.restarts, self.last_exit)

    def start(self) -> None:
        """Starts the process in a session of its own.

        Raises:
            FleetError: there is no such command, or the system refuses to start it.
            DiskError: its log cannot be written.
        """
        child, environment = self.child, os.environ | dict(self.child.env)
        if shutil.which(child.argv[0], path=environment.get("PATH")) is None:
            raise FleetError(f"{child.name} cannot be started: there is no command {child.argv[0]}")
        self._lines.clear()
        self._partial = b""
        output: IO[bytes] | int = subprocess.PIPE
        try:
            if child.log:
                child.log.parent.mkdir(parents=True, exist_ok=True)
                output = child.log.open("ab")
                self._log_start = output.tell()
        except OSError as error:
            raise DiskError(f"{child.name}: cannot write the log {child.log}: {error.strerror}") from error
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the commands are the fleet's own
                tied(child.argv),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise FleetError(f"{child.name} cannot be started: {error.strerror}") from error
        finally:
            if not isinstance(output, int):
                output.close()
        if self._process.stdout:
            os.set_blocking(self._process.stdout.fileno(), False)
        self.started, self.killed = time.monotonic(), 0.0
        self.phase = "starting"

    def reap(self) -> bool:
        """Whether the process has ended since the last call; what it started is then killed."""
        if self._process is None:
            return False
        # Looked at before it is reaped: until then nobody else can get its process group's number.
        if hasattr(os, "waitid") and not os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        if not hasattr(os, "waitid") and self._process.poll() is None:
            return False
        self.kill()
        self.wait()
        return True

    def wait(self) -> None:
        """Waits for a process that has ended or was killed, and forgets it; at most 10 s."""
        if self._process is None:
            return
        # A process in a call that the kernel cannot break off (a hung device driver) does not die by SIGKILL.
        with suppress(subprocess.TimeoutExpired):
            self.last_exit = self._process.wait(_STUCK_S)
        self.forward_output()
        if self._process.stdout:
            self._process.stdout.close()
        if self._partial:
            self._line(self._partial)
            self._partial = b""
        self._process = None

    def ask_to_end(self) -> None:
        """Sends SIGTERM to the process alone: how to end what it started is its own affair."""
        if self._process:
            # Not Popen.send_signal: it may reap, and only ``reap`` is to do that.
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL to the process and all that it started."""
        if self._process:
            self.killed = self.killed or time.monotonic()
            # PermissionError: how some systems say that only the ended leader is left in the group.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def forward_output(self) -> None:
        """Passes what the process has written on to the stream, line by line; never waits."""
        if self._process is None or self._process.stdout is None or self._process.stdout.closed:
            return
        # Bounded, so that one talkative child cannot hold up the rest.
        for _ in range(16):
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                if not selector.select(0):
                    return
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                return
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._line(line)

    def _line(self, line: bytes) -> None:
        text = without_secrets(line.decode(errors="replace").rstrip("\r"))
        self._lines.append(text)
        print(self._prefix + text, file=self._stream, flush=True)

    def last_lines(self) -> list[str]:
        """The last lines of its last run, secrets hidden; at most 12."""
        if self.child.log is None:
            return list(self._lines)
        try:
            with self.child.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = without_secrets(log.read().decode(errors="replace")).splitlines()
        except OSError:
            return []
        return lines[-_LAST_LINES:]

    def how_it_ended(self) -> str:
        """Its last exit in words."""
        if self.last_exit is None:
            return "it has not ended"
        if self.last_exit < 0:
            return f"killed by signal {-self.last_exit} ({signal.strsignal(-self.last_exit)})"
        return f"exit status {self.last_exit}"


class Supervisor:
    """Runs children until they are drained.

    Use it as a context manager: on the way out it drains whatever still runs, so an exception leaves no process.

    Args:
        children: in the order of start; a child may only wait for earlier ones.
        backoff: how soon a dead child is started again, and when it is given up.
        stream: gets the output of children without a log file, each line after its child's name.

    Raises:
        ValueError: two children share a name, or one waits for a name that does not come before it.
    """

    def __init__(
        self,
        children: Sequence[Child],
        backoff: Backoff | None = None,
        stream: TextIO | None = None,
    ) -> None:
        names: list[str] = []
        for child in children:
            if child.name in names or not set(child.after) <= set(names):
                raise ValueError(f"child {child.name!r}: its name is taken, or it waits for one that comes later")
            names.append(child.name)
        width = max(map(len, names), default=0)
        self._children = {
            child.name: _Running(child, sys.stderr if stream is None else stream, width) for child in children
        }
        self._backoff = backoff or Backoff()
        self._events: list[Event] = []
        self._draining = False
        self._fault: FleetError | None = None
        self._signals = 0

    @property
    def states(self) -> list[ChildState]:
        """Every child as it is now, in the order of start."""
        return [running.state for running in self._children.values()]

    @property
    def all_ready(self) -> bool:
        """Whether every child is ready, or ended as it should."""
        return all(state.phase in {"ready", "finished"} for state in self.states)

    @property
    def ended(self) -> bool:
        """Whether no child runs and none will be started."""
        return all(state.phase in {"finished", "stopped"} for state in self.states)

    def poll(self) -> list[Event]:
        """Does what is due, without waiting; returns what happened since the last call.

        Raises:
            FleetError: a child was given up, or cannot be started. The others still run: drain them.
        """
        if self._fault is not None and not self._draining:
            raise self._fault
        now = time.monotonic()
        for running in self._children.values():
            running.forward_output()
            if running.reap():
                self._after_exit(running, now)
            elif running.phase == "starting":
                self._check_ready(running, now)
        if self._draining:
            self._drain_step(now)
        else:
            for running in self._children.values():
                self._start_if_due(running, now)
        events, self._events = self._events, []
        return events

    def drain(self) -> None:
        """Asks all children to end, in the reverse order of start; ``poll`` does it.

        A child is asked once the children that wait for it are gone, so a server outlives the workers that need it;
        one that takes longer than its ``drain_s`` is killed with all it started.
        """
        self._draining = True

    def kill(self) -> None:
        """Kills every child and all that they started, now."""
        self._draining = True
        for running in reversed(self._children.values()):
            if running.pid is not None:
                running.kill()
                self._note(running, "killed", "at once")
                running.wait()
            running.phase = "finished" if running.phase == "finished" else "stopped"

    def stop(self) -> None:
        """Drains and waits for it; at most the sum of the ``drain_s`` of children that wait for each other."""
        self.drain()
        try:
            while not self.ended:
                self._heed_signals()
                self.poll()
                time.sleep(POLL_INTERVAL_S)
        except BaseException:
            # An impatient Ctrl-C, for one. Whatever it is, it must not leave processes.
            self.kill()
            raise

    def run(self, on_events: Callable[[list[Event]], object] | None = None) -> None:
        """Polls until every child has ended; for the main thread, whose signals it takes over meanwhile.

        The first SIGINT, SIGTERM or SIGHUP drains, the next one kills at once.

        Args:
            on_events: called about 20 times a second with what happened, perhaps nothing.

        Raises:
            FleetError: a child was given up; the others have been drained.
        """
        with self._signals_counted(), self:
            while not self.ended:
                self._heed_signals()
                events = self.poll()
                if on_events:
                    on_events(events)
                time.sleep(POLL_INTERVAL_S)
        if self._fault is not None:
            raise self._fault

    @contextmanager
    def _signals_counted(self) -> Iterator[None]:
        # Only counted: the handler may run in the middle of a poll.
        def count(_number: int, _frame: FrameType | None) -> None:
            self._signals += 1

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before: dict[signal.Signals, Any] = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed_signals(self) -> None:
        if self._signals > 1:
            self.kill()
        elif self._signals == 1:
            self.drain()

    def _note(self, running: _Running, what: str, detail: str = "") -> None:
        self._events.append(Event(running.child.name, what, detail))

    def _start_if_due(self, running: _Running, now: float) -> None:
        if running.phase not in {"waiting", "backing off"} or now < running.due:
            return
        if any(self._children[name].phase not in {"ready", "finished"} for name in running.child.after):
            return
        try:
            running.start()
        except FleetError as error:
            self._fault = error
            running.phase = "stopped"
            self._note(running, "given up", str(error))
        else:
            self._note(running, "started", f"pid {running.pid}")

    def _check_ready(self, running: _Running, now: float) -> None:
        child, age_s = running.child, now - running.started
        if child.ready() if child.ready else age_s >= self._backoff.settle_s:
            running.phase = "ready"
            self._note(running, "ready", f"after {age_s:.1f} s")
        elif age_s > child.ready_within_s and not running.killed:
            # Its exit is seen by the next poll and counts as a failed start.
            running.kill()
            self._note(running, "killed", f"not ready within {child.ready_within_s:g} s")

    def _after_exit(self, running: _Running, now: float) -> None:
        was_ready, status = running.phase in {"ready", "draining"}, running.last_exit
        self._note(running, "exited", running.how_it_ended())
        if self._draining:
            running.phase = "stopped"
            return
        if status == 0 and not running.child.lasting:
            running.phase = "finished"
            return
        if was_ready and now - running.started >= self._backoff.steady_s:
            running.failures = 0
        if not was_ready:
            running.failed_starts = [at for at in running.failed_starts if now - at < self._backoff.give_up_within_s]
            running.failed_starts.append(now)
            if status in _HOPELESS or len(running.failed_starts) >= self._backoff.give_up_exits:
                self._give_up(running)
                return
        delay_s = min(self._backoff.cap_s, self._backoff.base_s * 2**running.failures)
        # Children that died together, of a server that went away, must not come back in step.
        delay_s *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
        running.failures += 1
        running.restarts += 1
        running.due = now + delay_s
        running.phase = "backing off"
        self._note(running, "restarts", f"in {delay_s:.1f} s")

    def _give_up(self, running: _Running) -> None:
        lines = running.last_lines() or ["(it wrote nothing)"]
        starts = len(running.failed_starts)
        self._fault = FleetError(
            f"{running.child.name} ended before it was ready, {starts} time{'s' * (starts > 1)}: "
            f"{running.how_it_ended()}; its last lines:\n  " + "\n  ".join(lines)
        )
        self._fault.exit_status = running.last_exit if running.last_exit in _HOPELESS else FleetError.exit_status
        running.phase = "stopped"
        self._note(running, "given up", f"{starts} failed starts")

    def _drain_step(self, now: float) -> None:
        for running in reversed(self._children.values()):
            if running.phase in {"waiting", "backing off"}:
                running.phase = "stopped"
            if running.pid is None or any(
                other.pid is not None and running.child.name in other.child.after for other in self._children.values()
            ):
                continue
            if running.phase != "draining":
                running.phase = "draining"
                running.due = now + running.child.drain_s
                running.ask_to_end()
                self._note(running, "draining")
            elif now >= running.due and not running.killed:
                running.kill()
                self._note(running, "killed", f"not gone within {running.child.drain_s:g} s")
            elif running.killed and now >= running.killed + _STUCK_S:
                self._note(running, "stuck", f"pid {running.pid} does not die of SIGKILL; left to the kernel")
                running.wait()
                running.phase = "stopped"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
