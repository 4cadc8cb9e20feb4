"""Verdicts as a file: the table's columns in Parquet or CSV, written beside its name and moved there when complete."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import sqlalchemy as sa

from configs.errors import DiskError, UsageError
from workers.verdict_schema import VERDICTS

_ARROW = {
    sa.Text: pa.string(),
    sa.Double: pa.float64(),
    sa.SmallInteger: pa.int16(),
    sa.Integer: pa.int32(),
    sa.BigInteger: pa.int64(),
    # A digest in hex, as in training lists; CSV has no bytes.
    sa.LargeBinary: pa.string(),
}
_EXPORTED = pa.schema([(column.name, _ARROW[type(column.type)]) for column in VERDICTS.columns])


def require_suffix(path: Path) -> None:
    """Checks that the name says a format.

    Raises:
        UsageError: it ends in neither .parquet nor .csv.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"cannot export to {path.name!r}: the name must end in .parquet or .csv")


def export_rows(chunks: Iterable[Sequence[Sequence[Any]]], path: Path) -> int:
    """Writes rows of the table to a .parquet or .csv file; an old one is replaced when all is done.

    Args:
        chunks: the rows, columns in the table's order.
        path: the file.

    Returns:
        Rows written.

    Raises:
        UsageError: the name ends in neither.
        DiskError: the file cannot be written; an old one is still there.
    """
    require_suffix(path)
    part = path.with_name(path.name + ".part")
    n = 0
    try:
        with _writer(part) as writer:
            for chunk in chunks:
                columns = [list(values) for values in zip(*chunk, strict=True)]
                hashes = _EXPORTED.get_field_index("sha256")
                columns[hashes] = [digest.hex() for digest in columns[hashes]]
                writer.write_batch(pa.record_batch(columns, schema=_EXPORTED))
                n += len(chunk)
        part.replace(path)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return n


def _writer(path: Path) -> Any:
    if path.suffixes[-2:-1] == [".csv"]:
        return pyarrow.csv.CSVWriter(path, _EXPORTED)
    return pyarrow.parquet.ParquetWriter(path, _EXPORTED)
