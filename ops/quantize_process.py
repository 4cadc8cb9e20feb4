"""The process that quantises: ops.quantize_apart in the interpreter that has llm-compressor, and what it leaves."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, Any

import msgspec
from msgspec import Struct

from configs.errors import DiskError, FleetError
from ops.lmcache import NOT_THEIRS
from ops.running import STUCK_S
from ops.tied import tied
from routing.logs import without_secrets

SCRIPT = Path(__file__).parent / "quantize_apart.py"

# Unbuffered: what it says must not come after its own traceback, or not at all.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
#: A checkpoint may bring code that runs there; and it works offline, so the hub's login is not its business either.
_WITHHELD = frozenset({*NOT_THEIRS, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
_LAST_LINES = 12


class Written(Struct, frozen=True):
    """What ops.quantize_apart says once the checkpoint is whole."""

    written_by: str
    before: tuple[float, ...]


class Compared(Struct, frozen=True):
    """What it says at its end, where photos are compared."""

    after: tuple[float, ...]


class Outcome(Struct, frozen=True):
    """A whole checkpoint."""

    #: compressed-tensors' version.
    written_by: str
    #: Uncalibrated P of each compared photo, before and after.
    before: tuple[float, ...]
    after: tuple[float, ...]
    #: Why there is no after; empty: nothing went wrong.
    failure: str


def quantised(python: str, order: Mapping[str, object], out: Path) -> Outcome:
    """Runs the order in another interpreter; for the main thread.

    However that ends, by a signal to this process too, the other one does not go on, and the folder holds a whole
    checkpoint or is gone.

    Args:
        python: the interpreter that has llm-compressor.
        order: ops.quantize_apart.Order.
        out: the folder of the new checkpoint, absolute; the log is beside it.

    Raises:
        DiskError: the log cannot be written, or the disk is full.
        FleetError: llm-compressor failed; with its last lines.
    """
    log = out.with_name(f"{out.name}.log")
    with _signals_exit(), TemporaryFile() as told:
        try:
            status = _status(python, order, log, told)
        finally:
            told.seek(0)
            answers = told.read().splitlines()
            if not answers:
                # Half a checkpoint must not be taken for one, nor stand in the way of the next try.
                shutil.rmtree(out, ignore_errors=True)
    ended = f"llm-compressor ended with {f'signal {-status}' if status < 0 else f'status {status}'}"
    if not answers:
        tail = "\n  ".join(_last_lines(log)) or "(it wrote nothing)"
        kind = DiskError if os.strerror(errno.ENOSPC) in tail else FleetError
        raise kind(f"{ended}; {log} has all, its last lines:\n  {tail}")
    written = msgspec.json.decode(answers[0], type=Written)
    if not written.before or len(answers) > 1:
        after = msgspec.json.decode(answers[1], type=Compared).after if written.before else ()
        return Outcome(written.written_by, written.before, after, "")
    cause = (_last_lines(log) or ["it wrote nothing"])[-1]
    return Outcome(written.written_by, written.before, (), f"{ended}: {cause}; {log} has all")


@contextmanager
def _signals_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as an error does, so that it clears away what it began."""

    def leave(number: int, _frame: FrameType | None) -> None:
        # A service manager may send both: the second must not break off what the first began.
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    handlers: dict[signal.Signals, Any] = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    # What nohup has this process ignore, it goes on to ignore.
    before = {one: handler for one, handler in handlers.items() if handler is not signal.SIG_IGN}
    for one in before:
        signal.signal(one, leave)
    try:
        yield
    finally:
        for one, handler in before.items():
            if signal.getsignal(one) is leave:
                signal.signal(one, handler)


def _status(python: str, order: Mapping[str, object], log: Path, told: IO[bytes]) -> int:
    """Exit status of the process; its answers are in ``told``."""
    inherited = {name: value for name, value in os.environ.items() if name not in _WITHHELD}
    try:
        # From a file: an argument is 128 KiB at most, and a pipe wants somebody who reads it.
        with TemporaryFile() as asked, log.open("wb") as said:
            asked.write(msgspec.json.encode(order))
            asked.seek(0)
            process = subprocess.Popen(  # noqa: S603 - the user's own interpreter and the project's own script
                tied([python, str(SCRIPT), str(told.fileno())], signal.SIGKILL),
                env=inherited | _ENVIRONMENT,
                stdin=asked,
                stdout=said,
                stderr=subprocess.STDOUT,
                pass_fds=[told.fileno()],
                # So that what it starts can be ended with it, and a Ctrl-C is this process's to pass on.
                start_new_session=True,
            )
    except OSError as error:
        raise DiskError(f"cannot write {log} or start {python}: {error.strerror}") from None
    try:
        return process.wait()
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends it, if it runs, and what it started: nothing that it holds is worth a wait."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # A process in a call that the kernel cannot break off (a hung device driver) does not die.
        with suppress(subprocess.TimeoutExpired):
            process.wait(STUCK_S)


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines()
    return [without_secrets(line) for line in lines if line.strip()][-_LAST_LINES:]
