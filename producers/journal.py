"""What was admitted, written outside Redis: the account is the difference between this and the verdicts.

One file a source, one JSON object a line: a header, then one line for each admit, appended and fsynced. The producer
writes a line when admit() has returned. A crash between the two leaves the ledger's offset ahead of the journal: on
resume the producer reads those positions from its source again and writes them down. A Redis that was rolled back
leaves the offset behind: what is admitted again is in the journal already and is not written twice.
"""

import fcntl
import os
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from configs.errors import AccountError, BusyError, DiskError, UsageError
from producers.admitted import Admit, Header, read_journal

LABELS = {1: "1", 0: "0", -1: "-"}

_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


class Journal:
    """An open journal; one process at a time has it open for writing."""

    def __init__(self, path: Path, file: int, header: Header, end: int) -> None:
        self.path = path
        self.header = header
        self._file = file
        self._end = end
        self._length_bytes = os.fstat(file).st_size
        self._broken = ""

    @property
    def end(self) -> int:
        """Positions before it are in the journal: the next line starts here."""
        return self._end

    @classmethod
    def create(
        cls, folder: Path, source: str, *, profile: str, spec: str, limit: int | None, started_ms: int
    ) -> "Journal":
        """Starts the journal of a new source; file and folder are on the disk when this returns.

        Args:
            folder: Where journals are; it is made when missing.
            source: The source's name with its run id, [a-z0-9._-]; it names the file.
            profile: Digest of the profile (configs.profile.Profile.digest).
            spec: As the user named the source, to open it again.
            limit: As the user gave it.
            started_ms: Unix time.

        Raises:
            UsageError: ``source`` cannot name a file.
            BusyError: this source has a journal already.
            DiskError: the disk refuses.
        """
        path = journal_path(folder, source)
        header = Header(source=source, profile=profile, spec=spec, limit=limit, started_ms=started_ms)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise BusyError(f"{path}: this source has a journal already; resume it, or start a new run")
            file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _lock(file, path)
                _write(file, msgspec.json.encode(header) + b"\n")
                os.fsync(file)
                # Under its name only with its header in it: a crash leaves a whole journal or none.
                draft.rename(path)
                _sync_folder(folder)
                return cls(path, file, header, 0)
            except BaseException:
                os.close(file)
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise DiskError(f"{path}: {error.strerror}") from error

    @classmethod
    def reopen(cls, folder: Path, source: str) -> "Journal":
        """Opens a journal after a crash: a line that was cut in the middle of its write is dropped, the rest goes on.

        Raises:
            UsageError: ``source`` cannot name a file.
            AccountError: the journal is damaged, not only cut.
            BusyError: another process has it open.
            DiskError: there is none, or the disk refuses.
        """
        path = journal_path(folder, source)
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise DiskError(f"{path}: {error.strerror}") from error
        try:
            # Locked before it is read: another writer's line in the making would look torn.
            _lock(file, path)
            report = read_journal(path)
            if report.torn_bytes:
                os.ftruncate(file, os.fstat(file).st_size - report.torn_bytes)
                os.fsync(file)
            return cls(path, file, report.header, report.end)
        except OSError as error:
            os.close(file)
            raise DiskError(f"{path}: {error.strerror}") from error
        except BaseException:
            os.close(file)
            raise

    def admitted(
        self,
        start: int,
        end: int,
        *,
        labels: Sequence[int],
        origins: Sequence[str],
        seen: Sequence[bool],
        bad: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Writes down that positions ``start`` up to, not including, ``end`` are admitted; on the disk on return.

        Args:
            start: Equal to ``self.end``.
            end: More than ``start``.
            labels: Of each position, bad ones included: 1, 0 or routing.messages.UNLABELLED.
            origins: Of each position.
            seen: Of each position: in the training list of a model of the profile.
            bad: (position, reason) of those refused at intake, which were admitted as voids.

        Raises:
            AccountError: a gap, an overlap, or not one label, origin and seen for each position; nothing is written.
            DiskError: the disk refuses. The journal is as before; after a failed fsync it takes no more lines, since
                nobody can say what is on the disk.
        """
        if self._broken:
            raise DiskError(f"{self.path}: an earlier write failed ({self._broken}); resume the run to go on")
        if start != self._end or end <= start:
            raise AccountError(f"{self.path}: positions {start} to {end} do not follow its end, {self._end}")
        count = end - start
        if not len(labels) == len(origins) == len(seen) == count:
            raise AccountError(
                f"{self.path}: {count} positions with {len(labels)} labels, {len(origins)} origins and {len(seen)} seen"
            )
        line = Admit(
            start=start,
            end=end,
            labels="".join([LABELS[label] for label in labels]),
            origins=[(origin, len(list(run))) for origin, run in groupby(origins)],
            seen="".join(["01"[flag] for flag in seen]) if any(seen) else "",
            bad=list(bad),
        )
        self._append(msgspec.json.encode(line) + b"\n")
        self._end = end

    def _append(self, line: bytes) -> None:
        try:
            _write(self._file, line)
        except OSError as error:
            try:
                # A disk that fills up takes the first half of the line: it must not stand before the next one.
                os.ftruncate(self._file, self._length_bytes)
            except OSError:
                self._broken = error.strerror or str(error)
            raise DiskError(f"{self.path}: {error.strerror}") from error
        try:
            os.fdatasync(self._file)
        except OSError as error:
            # A second fsync would succeed without the pages that the first one lost.
            self._broken = error.strerror or str(error)
            raise DiskError(f"{self.path}: {error.strerror}") from error
        self._length_bytes += len(line)

    @property
    def broken(self) -> bool:
        """It takes no more lines, whatever becomes of the disk; a new one of the same run goes on."""
        return bool(self._broken)

    def close(self) -> None:
        """Closes the file and frees it for another process; twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._broken = "it is closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def journal_path(folder: Path, source: str) -> Path:
    """Where the journal of ``source`` is.

    Raises:
        UsageError: ``source`` has characters that a file name should not have.
    """
    if not _SOURCE.fullmatch(source):
        raise UsageError(f"source name {source!r}: only a-z, 0-9, dot, dash and underscore, 128 at most")
    return folder / f"{source}.jsonl"


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"{path}: another producer writes to it") from None


def _write(file: int, line: bytes) -> None:
    # A write may take a part only: the disk is filling up, or a signal came.
    left = memoryview(line)
    while left:
        left = left[os.write(file, left) :]


def _sync_folder(folder: Path) -> None:
    # Without it the new name itself can be gone after a power failure.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
