"""Reads a journal back: which positions were admitted, and what was known of each."""

from array import array
from pathlib import Path

import msgspec
from msgspec import Struct

from configs.errors import AccountError, DiskError

VERSION = 1

_LABEL_OF = {ord("1"): 1, ord("0"): 0, ord("-"): -1}


class Header(Struct, frozen=True, kw_only=True):
    """First line of a journal."""

    source: str
    #: Digest of the profile.
    profile: str
    #: The source as the user named it, and the limit that was given.
    spec: str
    limit: int | None
    #: Unix time.
    started_ms: int
    version: int = VERSION


class Admit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line for each admit: positions ``start`` up to, not including, ``end``."""

    start: int = msgspec.field(name="from")
    end: int = msgspec.field(name="to")
    #: One character a position: 1, 0, or - without a label.
    labels: str
    #: Runs of (origin, positions).
    origins: list[tuple[str, int]]
    #: One character a position: 1 when a model of the profile was trained on it; empty when none was.
    seen: str = ""
    #: (position, reason) of what intake refused.
    bad: list[tuple[int, str]] = []

    def problem(self, expected: int) -> str:
        """What is wrong with this line where ``expected`` is the next position; empty when nothing is."""
        count = self.end - self.start
        if self.start != expected or count < 1:
            return f"positions {self.start} to {self.end}, where {expected} comes next"
        if len(self.labels) != count or not set(self.labels) <= set("10-"):
            return f"{count} positions with labels {self.labels[:20]!r}"
        if sum(run for _, run in self.origins) != count or any(run < 1 for _, run in self.origins):
            return f"{count} positions with origins {self.origins[:3]}"
        if self.seen and (len(self.seen) != count or not set(self.seen) <= set("10")):
            return f"{count} positions with seen {self.seen[:20]!r}"
        if any(not self.start <= position < self.end for position, _ in self.bad):
            return "a bad position that is not among its own"
        return ""


class JournalReport:
    """A journal in memory: positions 0 to ``end`` without a gap, six bytes a position."""

    def __init__(self, header: Header) -> None:
        self.header = header
        #: Positions before it are admitted.
        self.end = 0
        #: Reason by position of what intake refused; admitted too, as voids.
        self.bad: dict[int, str] = {}
        #: Bytes of a last line that a crash cut; it was never acknowledged.
        self.torn_bytes = 0
        self._labels = bytearray()
        self._seen = bytearray()
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._origins = array("I")

    def label(self, position: int) -> int:
        """1, 0 or routing.messages.UNLABELLED."""
        return _LABEL_OF[self._labels[position]]

    def origin(self, position: int) -> str:
        """The data set or camera that it is from."""
        return self._names[self._origins[position]]

    def seen(self, position: int) -> bool:
        """Whether a model of the profile was trained on it."""
        return self._seen[position] == ord("1")

    def origins(self) -> list[str]:
        """Every origin, in order of its first photo."""
        return list(self._names)

    def add(self, line: Admit) -> None:
        """Takes in one line that has no problem."""
        count = line.end - line.start
        self._labels += line.labels.encode()
        self._seen += line.seen.encode() or b"0" * count
        for name, run in line.origins:
            number = self._numbers.setdefault(name, len(self._names))
            if number == len(self._names):
                self._names.append(name)
            self._origins.extend([number] * run)
        self.bad.update(line.bad)
        self.end = line.end


def read_journal(path: Path) -> JournalReport:
    """Reads a journal, also one that is being written.

    Raises:
        DiskError: it cannot be read.
        AccountError: it has no header, or a line other than the last is damaged, or positions are missing or twice.
    """
    decoder = msgspec.json.Decoder(Admit)
    torn = b""
    try:
        with path.open("rb") as lines:
            report = JournalReport(_header(path, lines.readline()))
            for number, line in enumerate(lines, start=2):
                if torn:
                    raise AccountError(f"{path}: line {number - 1} is damaged, and it is not the last")
                try:
                    admit = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    torn = line
                    continue
                if not line.endswith(b"\n"):
                    # Whole but for its end: it was never acknowledged either, and the next line would join it.
                    torn = line
                    continue
                if problem := admit.problem(report.end):
                    raise AccountError(f"{path}: line {number}: {problem}")
                report.add(admit)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    report.torn_bytes = len(torn)
    return report


def _header(path: Path, line: bytes) -> Header:
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AccountError(f"{path}: line 1 is no header of a journal: {error}") from None
    if header.version != VERSION:
        raise AccountError(f"{path}: journal version {header.version}; this process reads {VERSION}")
    return header
