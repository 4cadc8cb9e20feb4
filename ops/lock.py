"""One at a time: a lock that the kernel frees when its holder dies, however it dies."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from configs.errors import BusyError, DiskError

#: Held by a run of the fleet, under the working directory.
RUN_LOCK_FILE = Path("var/run.lock")


class RunLock:
    """A lock on a file, held between ``take`` and ``release`` or inside ``with``.

    The file says who holds it and stays there afterwards: removing it would let two holders each lock a file of that
    name. A child that inherits ``fileno`` (subprocess' pass_fds) keeps the lock held for as long as it lives.

    Args:
        path: the file; its folder is made.
        command: what runs, for the next one's error; no secrets.
        what: the noun of that error.
    """

    def __init__(self, path: Path = RUN_LOCK_FILE, command: str = "", what: str = "run") -> None:
        self.path = path
        self.command = command
        self.what = what
        self._descriptor: int | None = None

    def take(self) -> None:
        """Takes the lock at once or not at all.

        Raises:
            BusyError: somebody holds it; says who.
            DiskError: the file cannot be written or locked.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DiskError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n{self.command}\n".encode(), 0)
        except BlockingIOError:
            pid, _, command = os.pread(descriptor, 4096, 0).decode(errors="replace").partition("\n")
            os.close(descriptor)
            doing = f": {command.strip()}" if command.strip() else ""
            raise BusyError(f"another {self.what} (pid {pid or 'unknown'}) is going on{doing}") from None
        except OSError as error:
            os.close(descriptor)
            raise DiskError(f"cannot lock {self.path}: {error.strerror}") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the lock back; nothing when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def fileno(self) -> int:
        """The descriptor to hand to a child.

        Raises:
            ValueError: the lock is not held.
        """
        if self._descriptor is None:
            raise ValueError("the lock is not held")
        return self._descriptor

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder(path: Path) -> int | None:
    """The process that holds the lock; None when nobody does.

    Raises:
        DiskError: the file cannot be read.
        BusyError: somebody took it this moment and has not said who.
    """
    found = held_by(path)
    return found[0] if found else None


def held_by(path: Path) -> tuple[int, str] | None:
    """The process that holds the lock, and the command that it said then; None when nobody does.

    Raises:
        DiskError: the file cannot be read.
        BusyError: somebody took it this moment and has not said who.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        pid, _, command = path.read_text(errors="replace").partition("\n")
        if not pid.isdigit():
            raise BusyError(f"{path} was taken this moment: try again") from None
        return int(pid), command.strip()
    except OSError as error:
        raise DiskError(f"cannot read {path}: {error.strerror}") from error
    return None
