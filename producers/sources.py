"""Where photos come from: a folder, a Parquet file, the NATIX test split on the hub, scenes that the project renders.

A source numbers its photos from 0, always in the same order, and starts at any of them: the ledger's offset is the only
resume point (see docs/delivery.md), so a producer that was killed opens the same source again and goes on there. What
that asks of a user: do not add or take away files while a run is open.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from configs.errors import SourceError, UsageError

#: Longest name of a source, in characters: it is part of every image id.
NAME_LIMIT = 32


class Photo(Struct, frozen=True):
    """One photo as it arrives, or the reason why its bytes cannot be had."""

    #: File or row, for messages only: it identifies nothing.
    name: str
    #: None when ``unreadable`` says why.
    data: bytes | None
    #: The data set or camera that it is from.
    origin: str
    #: 1 roadwork, 0 none, routing.messages.UNLABELLED.
    label: int
    #: Why there are no bytes; empty otherwise. The photo keeps its position and ends as a void.
    unreadable: str = ""
    #: The film or burst that it is a frame of; empty for a still photo. Frames come in the order of positions.
    sequence: str = ""


class Source(Protocol):
    """A numbered stream of photos."""

    #: Lower-case letters, digits and dashes, at most NAME_LIMIT.
    name: str
    #: Photos that it will yield from position 0, ``limit`` applied; None when that is unknown.
    total: int | None
    #: What a user should know of its figures, printed once; empty: nothing.
    note: str

    def photos(self, start: int) -> Iterator[Photo]:
        """The photos from position ``start`` (>= 0) on, in order.

        Raises:
            SourceError: the source itself went away or is damaged. One bad photo is not that: it is yielded unreadable.
        """
        ...


def slug(text: str) -> str:
    """``text`` as a source's name: lower-case letters, digits and single dashes; "photos" when nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:NAME_LIMIT].rstrip("-") or "photos"


def printable(path: str | os.PathLike[str]) -> str:
    """``path`` for a message: a file name that is not UTF-8 would break every encoder after us."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_source(spec: str, limit: int | None = None) -> Source:
    """Opens the source that ``spec`` names.

    Each kind is imported when it is asked for: pyarrow and the hub's client take longer to import than most commands
    run.

    Args:
        spec: ``natix``, ``rendered:N``, a FILE.parquet, or a folder (with manifest.csv, with roadwork/ and
            no_roadwork/, or of unlabelled photos).
        limit: Photos at most, >= 1; None: all.

    Raises:
        UsageError: ``limit`` or N is no whole number from 1 up, or N is more than there are demo scenes.
        SourceError: there is no such source, it is empty, or it is not laid out as it must be.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: give a whole number from 1 up")
    if spec == "natix":
        from producers.hub import open_natix  # noqa: PLC0415 - see above

        return open_natix(limit)
    kind, colon, count = spec.partition(":")
    if kind == "rendered":
        from producers.rendered import open_rendered  # noqa: PLC0415 - see above

        return open_rendered(count if colon else "", limit)
    path = Path(spec)
    if path.is_dir():
        from producers.folder import open_folder  # noqa: PLC0415 - see above

        return open_folder(path, limit)
    if path.suffix.lower() == ".parquet":
        from producers.parquet import open_parquet  # noqa: PLC0415 - see above

        return open_parquet(path, limit)
    if path.exists():
        raise SourceError(
            f"{printable(path)}: neither a folder nor a .parquet file; to feed one photo, give its folder"
        )
    raise SourceError(
        f"source {printable(spec)!r}: no such file or folder; give a folder, a FILE.parquet, natix or rendered:N"
    )
