"""A rolling restart of the fleet that `natix-fleet up` runs here: asked for by a signal, told by a file."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import click
import structlog

from configs.errors import DiskError, FleetError, ServerError
from ops.child import Event
from ops.lock import RunLock, holder
from ops.roll import FLEET

log = structlog.get_logger(__name__)

#: What a fleet that is asked to restart says, a line an event, in its folder.
TOLD = "restart"
_LOOK_EVERY_S = 0.1
_EVENTS = ("started", "draining", "ready", "killed", "given up", "replaced", "not replaced")


class RestartRequests:
    """The fleet's side: heeds SIGUSR1, and tells what came of it.

    Make it before the lock names this process: unheeded the signal would end it.

    Args:
        folder: the fleet's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOLD
        self._waiting = 0
        self._going_on = False
        signal.signal(signal.SIGUSR1, self._note)

    def _note(self, *_: object) -> None:
        # Only counted: the handler may run in the middle of anything.
        self._waiting += 1

    def take(self) -> bool:
        """Whether a restart is to begin; who asks while one goes on gets another after it."""
        if self._going_on or not self._waiting:
            return False
        self._waiting, self._going_on = 0, True
        return True

    def tell(self, events: Sequence[Event]) -> None:
        """Writes down what happened since, for whoever asked."""
        lines = []
        for event in events if self._going_on else ():
            # By both: a tier may be called so.
            if event.child == FLEET and event.what not in _EVENTS:
                self._going_on = False
                if self._waiting:
                    # Who asked meanwhile waits for the end of the next one.
                    continue
            elif event.what not in _EVENTS:
                continue
            lines.append(f"{event.child} {event.what}: {event.detail}\n")
        if not lines:
            return
        try:
            with self._path.open("a") as told:
                told.writelines(lines)
        except OSError as error:
            # No reason to end a fleet.
            log.error("cannot say how the restart goes", path=str(self._path), error=error.strerror)  # noqa: TRY400


def restart(folder: Path) -> None:
    """Asks the fleet of ``folder`` to restart its processes one after another, and waits until it has.

    Raises:
        BusyError: somebody waits for a restart already.
        ServerError: no fleet runs there, or it ended meanwhile.
        DiskError: the folder cannot be written.
        FleetError: a process did not come up again.
    """
    lock, told = folder / "lock", folder / TOLD
    pid = holder(lock)
    if pid is None:
        raise ServerError(f"no fleet runs here ({lock} is free): start one with natix-fleet up")
    with RunLock(folder / "restart.lock", "natix-fleet restart", "restart"):
        try:
            told.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"cannot remove {told}: {error.strerror}") from error
        try:
            os.kill(pid, signal.SIGUSR1)
        except OSError as error:
            raise ServerError(f"the fleet (pid {pid}) cannot be asked: {error.strerror}") from error
        _follow(told, lock)


def _follow(told: Path, lock: Path) -> None:
    seen = 0
    while True:
        # Looked at first: what it said before it ended is still read.
        runs = holder(lock) is not None
        text = told.read_text() if told.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for line in whole[seen:].splitlines():
            if line.startswith(f"{FLEET} restart stopped"):
                raise FleetError(f"{line}; its log is in {told.parent}")
            click.echo(line)
            if line.startswith(f"{FLEET} restarted"):
                return
        seen = len(whole)
        if not runs:
            raise ServerError("the fleet ended before all its processes were restarted")
        time.sleep(_LOOK_EVERY_S)
