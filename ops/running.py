"""A child's process: how it starts in a session of its own, what it writes, how it ends."""

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO

from configs.errors import DiskError, FleetError
from ops.child import Child, ChildState
from ops.tied import tied
from routing.logs import without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

#: A killed process that is still there after this many seconds is left to the kernel.
STUCK_S = 10.0
_LAST_LINES = 12
_TAIL_BYTES = 8192
#: Where the cause is looked for.
_CAUSE_BYTES = 1 << 20


class Running:
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
        #: It was ready in one of its runs.
        self.proven = False
        #: Asked to end by itself, for good.
        self.retired = False
        #: Not to run for now.
        self.paused = False
        self.last_exit: int | None = None
        #: Monotonic time of the first SIGKILL of this run; 0 before it.
        self.killed = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        #: Of this run.
        self._alive: Callable[[], bool] | None = None
        self._stream = stream
        self._width = width
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
        return ChildState(self.child.name, self.pid, self.phase, self.restarts, self.last_exit, self.proven)

    @property
    def lets_others_start(self) -> bool:
        """Whether a child that comes after it may start."""
        return self.phase in {"ready", "paused", "finished"} or (self.child.endless and self.proven)

    @property
    def may_start(self) -> bool:
        """Whether nothing outside speaks against it."""
        return self.child.may_start is None or self.child.may_start()

    @property
    def is_alive(self) -> bool:
        """Whether it does not hang, as far as somebody asks."""
        return self._alive is None or self._alive()

    def successor(self) -> "Running":
        """The same child once more, not started."""
        new = Running(self.child, self._stream, self._width)
        new.restarts = self.restarts
        return new

    def start(self) -> None:
        """Starts the process in a session of its own.

        Raises:
            FleetError: there is no such command, or the system refuses to start it.
            DiskError: its log cannot be written.
        """
        child = self.child
        inherited = {name: value for name, value in os.environ.items() if name not in child.without}
        environment = inherited | dict(child.env)
        if shutil.which(child.argv[0], path=environment.get("PATH")) is None:
            raise FleetError(f"{child.name} cannot be started: there is no command {child.argv[0]}")
        self._lines.clear()
        self._partial = b""
        output: IO[bytes] | int = subprocess.PIPE
        try:
            if child.ready_file:
                # Its predecessor's says nothing of this one.
                child.ready_file.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"{child.name}: cannot remove {child.ready_file}: {error.strerror}") from error
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
        self._alive = child.alive() if child.alive else None
        self.started, self.killed = time.monotonic(), 0.0
        self.phase = "starting"

    def is_ready(self, settle_s: float) -> bool:
        """Whether it says so, or without a word has lived for ``settle_s``."""
        if self.child.ready:
            return self.child.ready()
        if self.child.ready_file:
            return self._said_ready(self.child.ready_file)
        return time.monotonic() - self.started >= settle_s

    def _said_ready(self, file: Path) -> bool:
        # A successor and its forerunner share the file: where a pid is in it, it is to be this one's.
        try:
            said = file.read_text().split()
        except OSError:
            return False
        return not said or not said[0].isdigit() or int(said[0]) == self.pid

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
            self.last_exit = self._process.wait(STUCK_S)
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

    def drain(self, now: float) -> None:
        """Asks it to end, within its ``drain_s`` from now."""
        self.phase = "draining"
        self.due = now + self.child.drain_s
        self.ask_to_end()

    def retire(self) -> None:
        """Asks it to end, for good."""
        self.retired = True
        if self.phase in {"waiting", "backing off", "paused"}:
            self.phase = "finished"
        elif self.phase in {"starting", "ready"}:
            self.ask_to_end()

    def resume(self) -> None:
        """Has it start again, if it is paused."""
        self.paused = False
        if self.phase == "paused":
            self.phase, self.due = "waiting", 0.0

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
        """The last lines of its last run, secrets hidden, at most 12; before them those that say the cause."""
        cause = self.child.cause
        if self.child.log is None:
            lines = list(self._lines)
        else:
            try:
                with self.child.log.open("rb") as log:
                    log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - (_CAUSE_BYTES if cause else _TAIL_BYTES)))
                    lines = without_secrets(log.read().decode(errors="replace")).splitlines()
            except OSError:
                return []
        last = lines[-_LAST_LINES:]
        return [*(line for line in (cause(lines) if cause else ()) if line not in last), *last]

    def how_it_ended(self) -> str:
        """Its last exit in words."""
        if self.last_exit is None:
            return "it has not ended"
        if self.last_exit < 0:
            return f"killed by signal {-self.last_exit} ({signal.strsignal(-self.last_exit)})"
        return f"exit status {self.last_exit}"
