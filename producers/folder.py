"""Photos in a folder: listed by manifest.csv, sorted into roadwork/ and no_roadwork/, or without labels.

A manifest has the columns file and label, and may have source (or source_repo) and sequence, the film or burst that a
photo is a frame of.
"""

import csv
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath

from msgspec import Struct

from configs.errors import SourceError
from producers.sources import Photo, printable, slug
from routing.messages import UNLABELLED

MANIFEST = "manifest.csv"
#: Labelled sub-folders.
CLASSES = {"roadwork": 1, "no_roadwork": 0}
#: What counts as a photo here. More than intake opens: a HEIC photo must end as a void with a reason, not be skipped.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "bmp"),
        *("gif", "tif", "tiff", "dng", "heic", "heif", "avif", "jxl", "jp2"),
    )
)
#: A larger file is no photo: reading it would only fill the memory. The profile's bound (Photos.max_bytes) is lower.
READ_LIMIT_BYTES = 256 * 1024 * 1024

_LABELS = {"0": 0, "1": 1, "": UNLABELLED}


class Entry(Struct, frozen=True, gc=False):
    """One photo to read."""

    #: Relative to the folder, as listed.
    file: str
    label: int
    origin: str
    sequence: str = ""


class FolderSource:
    """The photos of one folder, in the order of its entries."""

    def __init__(self, root: Path, name: str, entries: list[Entry], note: str, places: tuple[str, ...] = ("",)) -> None:
        self.name = name
        self.total: int | None = len(entries)
        self.note = note
        # Resolved once: the folder itself may be a link, what is in it may not lead out.
        self._root = root.resolve()
        self._entries = entries
        self._places = places

    def photos(self, start: int) -> Iterator[Photo]:
        """The photos from position ``start`` on; one that cannot be read is yielded with its reason."""
        for entry in self._entries[start:]:
            name = printable(entry.file)
            try:
                # ValueError: a NUL in the name. RuntimeError: a link that leads to itself.
                data = self._read(entry.file)
            except (_UnreadableError, OSError, ValueError, RuntimeError) as error:
                cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
                yield Photo(name, None, entry.origin, entry.label, cause, entry.sequence)
            else:
                yield Photo(name, data, entry.origin, entry.label, sequence=entry.sequence)

    def _read(self, file: str) -> bytes:
        if not file:
            raise _UnreadableError("the row names no file")
        if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
            raise _UnreadableError("the name leads out of the folder")
        paths = [self._root / place / file for place in self._places]
        path = next((path for path in paths if path.exists()), paths[0])
        return _read_inside(self._root, path)


def _read_inside(root: Path, path: Path) -> bytes:
    """The bytes of a file under ``root``, which is resolved; a link to another place under it is followed."""
    inside = path.resolve()
    if not inside.is_relative_to(root):
        raise _UnreadableError("a link that leads out of the folder")

    def from_the_root(_: str, flags: int) -> int:
        # Step by step, and no link followed: one that was swapped in since resolve() may lead anywhere.
        *folders, name = inside.relative_to(root).parts or (".",)
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                outer, at = at, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(outer)
            # A FIFO that somebody named photo.jpg would keep a plain open() waiting for ever.
            return os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)

    with open(inside, "rb", opener=from_the_root) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _UnreadableError("not a regular file")
        if status.st_size > READ_LIMIT_BYTES:
            raise _UnreadableError(f"{status.st_size} bytes: more than is ever read here")
        return file.read()


class _UnreadableError(Exception):
    """One photo's bytes cannot be had."""


def open_folder(root: Path, limit: int | None) -> FolderSource:
    """Opens a folder: by its manifest if it has one, else by its labelled sub-folders, else as photos without labels.

    Raises:
        SourceError: it holds no photo, cannot be listed, or its manifest is malformed (with the line).
    """
    name = slug(root.resolve().name)
    if (root / MANIFEST).exists():
        return FolderSource(root, name, _manifest(root / MANIFEST, name)[:limit], "", ("", "images"))
    found = _walk(root)
    if not found:
        parquet = len(list(root.glob("*.parquet")))
        hint = f"; it has {parquet} .parquet files: name one of them" if parquet else ""
        raise SourceError(f"{printable(root)}: no photo in it{hint}")
    classes = {label: [f for f in found if PurePath(f).parts[0] == folder] for folder, label in CLASSES.items()}
    if not any(classes.values()):
        entries = [Entry(file, UNLABELLED, name) for file in found]
        return FolderSource(root, name, entries[:limit], "no labels: probabilities, but no MCC")
    outside = len(found) - sum(map(len, classes.values()))
    note = f"{outside} photos outside {'/ and '.join(CLASSES)}/ are left out" if outside else ""
    return FolderSource(root, name, _interleave(classes, name)[:limit], note)


def _interleave(classes: dict[int, list[str]], origin: str) -> list[Entry]:
    """Both classes evenly mixed, each in its own order: one class after the other has no rolling MCC at all."""
    placed = [
        ((i + 0.5) / len(files), Entry(file, label, origin))
        for label, files in classes.items()
        for i, file in enumerate(files)
    ]
    placed.sort(key=lambda place_entry: (place_entry[0], place_entry[1].file))
    return [entry for _, entry in placed]


def _walk(root: Path) -> list[str]:
    """Every photo under ``root`` by suffix, hidden ones left out, sorted by its relative path in any locale."""

    def refuse(error: OSError) -> None:
        raise SourceError(f"{printable(error.filename)}: {error.strerror}") from None

    found = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [
            os.path.relpath(Path(folder, file), root)
            for file in files
            if not file.startswith(".") and PurePath(file).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def _manifest(path: Path, name: str) -> list[Entry]:
    """The rows of a manifest, in its order.

    Raises:
        SourceError: it cannot be read, leads out of the folder, is not UTF-8, lacks a column, has a row of another
            length or another label.
    """
    try:
        raw = _read_inside(path.parent.resolve(), path)
        text = raw.decode("utf-8-sig")
    except (OSError, _UnreadableError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SourceError(f"{printable(path)}: {cause}") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{printable(path)}: line {line}: not UTF-8") from None
    # strict: a quote that is never closed would otherwise swallow the rest of the file as one field.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    entries = []
    try:
        header = [column.strip() for column in next(reader, [])]
        if missing := {"file", "label"} - set(header):
            what = (
                f"no column {' and no column '.join(sorted(missing))}; it has {', '.join(header)}"
                if header
                else "empty"
            )
            raise SourceError(f"{printable(path)}: line 1: {what}")
        source = next((header.index(column) for column in ("source", "source_repo") if column in header), None)
        film = header.index("sequence") if "sequence" in header else None
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise SourceError(
                    f"{printable(path)}: line {reader.line_num}: {len(row)} fields, the header has {len(header)}"
                )
            label = row[header.index("label")].strip()
            if label not in _LABELS:
                raise SourceError(f"{printable(path)}: line {reader.line_num}: label {label!r} is not 1, 0 or empty")
            origin = row[source].strip() if source is not None else ""
            sequence = row[film].strip() if film is not None else ""
            entries.append(Entry(row[header.index("file")].strip(), _LABELS[label], origin or name, sequence))
    except csv.Error as error:
        raise SourceError(f"{printable(path)}: line {reader.line_num}: {error}") from None
    if not entries:
        raise SourceError(f"{printable(path)}: line {reader.line_num}: a header, but no photo")
    return entries
