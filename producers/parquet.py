"""Photos in Parquet files as the hub keeps them: columns ``image`` and ``label``, read a few rows at a time.

A column ``sequence``, if there is one, names the film or burst that a photo is a frame of.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec import Struct
from pyarrow import parquet

from configs.errors import SourceError
from producers.sources import Photo, printable, slug
from routing.messages import UNLABELLED

#: Rows in memory at once: at 5 MB a photo this is 80 MB.
ROWS = 16
#: What the reader fetches ahead within a column, in bytes.
BUFFER_BYTES = 1 << 20


class Shard(Struct, frozen=True):
    """One Parquet file of a source: how to open it, and what stands in its footer."""

    name: str
    open: Callable[[], Any]
    #: Rows of each row group.
    groups: tuple[int, ...]
    #: What is read of each row.
    columns: tuple[str, ...] = ("image", "label")

    @property
    def rows(self) -> int:
        """Rows of the whole file."""
        return sum(self.groups)


class ParquetSource:
    """The rows of one file or several, one after the other."""

    def __init__(self, name: str, origin: str, shards: list[Shard], limit: int | None, note: str = "") -> None:
        self.name = name
        rows = sum(shard.rows for shard in shards)
        self._total = rows if limit is None else min(rows, limit)
        self.total: int | None = self._total
        self.note = note
        self._origin = origin
        self._shards = shards

    def photos(self, start: int) -> Iterator[Photo]:
        """The photos from position ``start`` on.

        Files and row groups before it are skipped by the footer; within its row group the rows before it are decoded
        and dropped.

        Raises:
            SourceError: a file is damaged or went away.
        """
        left = self._total - start
        for shard in self._shards:
            if start >= shard.rows:
                start -= shard.rows
                continue
            for row, image, label, sequence in _rows(shard, start):
                if left <= 0:
                    return
                left -= 1
                yield _photo(f"{shard.name}#{row}", image, label, self._origin, sequence)
            start = 0


def open_parquet(path: Path, limit: int | None) -> ParquetSource:
    """Opens one Parquet file of the disk.

    Raises:
        SourceError: it cannot be opened, is no Parquet file, has no rows, or has other columns.
    """
    shard = read_footer(printable(path), lambda: pa.OSFile(str(path), "rb"))
    if not shard.rows:
        raise SourceError(f"{shard.name}: no photo in it")
    name = slug(path.stem)
    return ParquetSource(name, name, [shard], limit)


def read_footer(name: str, opener: Callable[[], Any]) -> Shard:
    """Reads a file's footer and checks that its columns are the ones that we read.

    Args:
        name: The file, for messages.
        opener: Opens it as a pyarrow NativeFile; it is called again for each pass over the rows.

    Raises:
        SourceError: it cannot be opened, is no Parquet file, or has other columns.
    """
    with _reading(name):
        file = opener()
    with file, _reading(name):
        footer = parquet.ParquetFile(file, pre_buffer=False)
        schema = footer.schema_arrow
        groups = tuple(footer.metadata.row_group(i).num_rows for i in range(footer.num_row_groups))
    columns = {field.name: field.type for field in schema}
    if not (_holds_photos(columns.get("image")) and _holds_labels(columns.get("label"))):
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise SourceError(
            f"{name}: needs image (binary, or struct with bytes) and label (integer or bool); its columns are {found}"
        )
    if "sequence" not in columns:
        return Shard(name, opener, groups)
    if not _holds_names(columns["sequence"]):
        raise SourceError(f"{name}: column sequence is {columns['sequence']}, not string or integer")
    return Shard(name, opener, groups, ("image", "label", "sequence"))


def _holds_photos(column: Any) -> bool:
    if column is not None and pa.types.is_struct(column):
        column = next((field.type for field in column if field.name == "bytes"), None)
    return column is not None and (pa.types.is_binary(column) or pa.types.is_large_binary(column))


def _holds_labels(column: Any) -> bool:
    return column is not None and (pa.types.is_integer(column) or pa.types.is_boolean(column))


def _holds_names(column: Any) -> bool:
    return bool(pa.types.is_string(column) or pa.types.is_large_string(column) or pa.types.is_integer(column))


def _rows(shard: Shard, start: int) -> Iterator[tuple[int, Any, Any, Any]]:
    """Row number, image, label and sequence (None without that column) of each row from ``start`` on."""
    first = skipped = 0
    while start - skipped >= shard.groups[first]:
        skipped += shard.groups[first]
        first += 1
    with _reading(shard.name):
        file = shard.open()
    with file:
        row = skipped
        with _reading(shard.name):
            reader = parquet.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
            batches = reader.iter_batches(
                batch_size=ROWS,
                row_groups=range(first, len(shard.groups)),
                columns=list(shard.columns),
                use_threads=False,
            )
        while True:
            # Only the read is guarded: what the caller does with a row is not a fault of the file.
            with _reading(f"{shard.name}: from row {row} on"):
                batch = next(batches, None)
            if batch is None:
                return
            images, labels = batch.column("image"), batch.column("label")
            sequences = batch.column("sequence") if "sequence" in shard.columns else None
            for i in range(max(0, start - row), len(batch)):
                with _reading(f"{shard.name}#{row + i}"):
                    # A string column may hold what is not UTF-8.
                    sequence = sequences[i].as_py() if sequences is not None else None
                yield row + i, images[i].as_py(), labels[i].as_py(), sequence
            row += len(batch)


def _photo(name: str, image: Any, label: Any, origin: str, film: Any) -> Photo:
    sequence = "" if film is None else str(film)
    path = ""
    if isinstance(image, dict):
        path = image.get("path") or ""
        image = image["bytes"]
    if path:
        name = f"{name} ({printable(path)})"
    if label is None or label == UNLABELLED:
        label = UNLABELLED
    elif label not in (0, 1):
        # A wrong label must not be counted, and a photo without one would be: its row is as bad as one without bytes.
        return Photo(name, None, origin, UNLABELLED, f"label {label} is neither 1 nor 0", sequence)
    if image is None:
        cause = "the row holds no bytes" + (", only a path" * bool(path))
        return Photo(name, None, origin, int(label), cause, sequence)
    return Photo(name, image, origin, int(label), sequence=sequence)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turns whatever a reader raises into a SourceError: pyarrow's own errors, the disk's, the hub client's."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise SourceError(f"{what}: {' '.join(cause.split())[:300]}") from error
