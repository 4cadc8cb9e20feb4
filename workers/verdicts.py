"""The verdict database: one row an image, written by the collector, read by reports. SQLite, or PostgreSQL by URL.

A row's id is (source, position). Writing it again changes it only under a generation no smaller than its own, so a
collector may repeat a transaction whose end it did not see. Once write() returns, the rows are on disk.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any, Self

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from configs.errors import ConfigError, DiskError, FleetError, ServerError, UsageError
from routing.messages import UNLABELLED, Verdict, Vote
from workers.mcc import Counts

#: Raised when a column changes; a database of a later one is refused.
SCHEMA_VERSION = 1

_FORMS = "write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"

#: Rows in memory at once while reading or exporting.
CHUNK_ROWS = 16_384

_tables = sa.MetaData()

_meta = sa.Table(
    "verdicts_meta",
    _tables,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
)

_verdicts = sa.Table(
    "verdicts",
    _tables,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    # Pooled P(roadwork); null for a void.
    sa.Column("p", sa.Double),
    # 1 roadwork, 0 none, null when unlabelled.
    sa.Column("label", sa.SmallInteger),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    # 1: in the training list of a model of the profile.
    sa.Column("seen", sa.SmallInteger, nullable=False),
    # JSON: one array a vote, [tier, model, p, weight, latency_ms].
    sa.Column("votes", sa.Text, nullable=False),
    # From intake to the verdict; null when either time is unknown.
    sa.Column("latency_ms", sa.BigInteger),
    # Digest of the profile that the collector ran under: the thresholds and the models' versions.
    sa.Column("profile", sa.Text, nullable=False),
    # Of the photo as it arrived, 32 bytes.
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("width_px", sa.Integer, nullable=False),
    sa.Column("height_px", sa.Integer, nullable=False),
    # Unix time at intake, and at the verdict.
    sa.Column("taken_ms", sa.BigInteger, nullable=False),
    sa.Column("settled_ms", sa.BigInteger, nullable=False),
    # Generation: microseconds of the ledger's clock.
    sa.Column("gen", sa.BigInteger, nullable=False),
)

# Few rows are void, and a person waits for them.
sa.Index(
    "verdicts_void",
    _verdicts.c.settled_ms,
    sqlite_where=_verdicts.c.p.is_(None),
    postgresql_where=_verdicts.c.p.is_(None),
)

_ARROW = {
    sa.Text: pa.string(),
    sa.Double: pa.float64(),
    sa.SmallInteger: pa.int16(),
    sa.Integer: pa.int32(),
    sa.BigInteger: pa.int64(),
    # A digest in hex, as in training lists; CSV has no bytes.
    sa.LargeBinary: pa.string(),
}
_EXPORTED = pa.schema([(column.name, _ARROW[type(column.type)]) for column in _verdicts.columns])


#: Prefixes of SQLite's error names and PostgreSQL's SQLSTATEs, what they mean here, and the remedy.
_PROBLEMS: tuple[tuple[tuple[str, ...], type[FleetError], str], ...] = (
    (("SQLITE_FULL", "53100"), DiskError, "the disk is full; free some space, nothing was written"),
    (
        ("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"),
        DiskError,
        "cannot be written; check its folder's permissions and the disk",
    ),
    (
        ("SQLITE_BUSY", "SQLITE_LOCKED", "55P03"),
        ServerError,
        "somebody keeps it locked; end that process, then try again",
    ),
    (("SQLITE_NOTADB",), ConfigError, "the file is no SQLite database; choose another path"),
    (("SQLITE_CORRUPT",), ServerError, "the file is damaged; move it away and restore a copy"),
    (("SQLITE",), ServerError, "SQLite failed; try again"),
    (("",), ServerError, "no answer, or a refusal; check that the server runs and that the URL is right"),
)


class VerdictDatabase:
    """Opens a verdict database, and makes it where there is none yet.

    Threads may share one; SQLite lets one write at a time. Every method that reads raises ServerError when it cannot,
    and takes ``sources`` as: only the rows of these; none named: all rows.

    Args:
        url: sqlite:///relative/path, sqlite:////absolute/path, or postgresql://user:password@host/database.
        profile: digest of the profile in force, kept with every row that is written.
        create: make the database (and its folder) if missing; False: that is an error.
        busy_s: how long to wait for somebody else's lock.

    Raises:
        ConfigError: the URL is wrong, its driver is not installed, there is no such database, it is not one of ours
            or one of a newer natix-fleet.
        DiskError: its folder or file cannot be written.
        ServerError: the server does not answer, or somebody holds a lock.
    """

    def __init__(self, url: str, *, profile: str = "", create: bool = True, busy_s: float = 30.0) -> None:
        self._profile = profile
        try:
            parsed = sa.make_url(url)
        except (ArgumentError, ValueError):
            # Not repeated here: it may hold a password.
            raise ConfigError(f"the database URL cannot be read: {_FORMS}") from None
        self._name = parsed.render_as_string(hide_password=True)
        self._engine = (
            self._sqlite(parsed, create, busy_s) if "sqlite" in parsed.drivername else self._postgresql(parsed, busy_s)
        )
        try:
            with self._reported(), self._engine.begin() as connection:
                self._prepare(connection, create)
        except FleetError:
            self.close()
            raise
        insert = (sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert)(_verdicts)
        changed = {column.name: insert.excluded[column.name] for column in _verdicts.columns if not column.primary_key}
        upsert = insert.on_conflict_do_update(
            index_elements=[_verdicts.c.source, _verdicts.c.position],
            set_=changed,
            where=insert.excluded.gen >= _verdicts.c.gen,
        )
        # Compiled once, with one place a column in the table's order: rows then go to the driver as plain tuples.
        self._upsert = str(upsert.compile(dialect=self._engine.dialect))
        self._votes_json = msgspec.json.Encoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives all connections back; harmless when asked twice."""
        self._engine.dispose()

    def write(self, rows: Sequence[tuple[Verdict, int]]) -> None:
        """Writes verdicts with their generations (microseconds): all in one transaction, durable on return.

        Raises:
            DiskError: the disk is full or not writable. Nothing was written.
            ServerError: the database does not answer or stays locked. Ask again: a repeated write is harmless.
        """
        if not rows:
            return
        values = list(starmap(self._values, rows))
        with self._reported(), self._engine.begin() as connection:
            connection.exec_driver_sql(self._upsert, values)

    def ids(self, source: str) -> Iterator[int]:
        """The positions of ``source`` that have a row, ascending."""
        wanted = sa.select(_verdicts.c.position).where(_verdicts.c.source == source).order_by(_verdicts.c.position)
        for chunk in self._read(wanted):
            yield from (position for (position,) in chunk)

    def recount(self, sources: Sequence[str] = ()) -> dict[str, Counts]:
        """Counts anew every labelled verdict that is no void.

        Returns:
            By the collector's scopes: "all", "tier:NAME", "origin:NAME"; the same under "seen/" for photos that a model
            was trained on, which count in no other.
        """
        column = _verdicts.c
        # 0.5 as text: PostgreSQL must see the same expression in both places, and two parameters are not the same.
        decision = (column.p > sa.literal_column("0.5")).label("decision")
        keys = (column.tier, column.origin, column.seen, column.label, decision)
        query = self._of(sources, sa.select(*keys, sa.func.count()))
        query = query.where(column.label.is_not(None), column.p.is_not(None)).group_by(*keys)
        cells: dict[str, list[int]] = {"all": [0] * 4}
        for chunk in self._read(query):
            for tier, origin, seen, label, decided, n in chunk:
                for scope in ("all", f"tier:{tier}", f"origin:{origin.replace('|', '_')}"):
                    of_scope = cells.setdefault("seen/" * seen + scope, [0] * 4)
                    of_scope[2 * label + decided] += n
        return {scope: Counts(tp=tp, tn=tn, fp=fp, fn=fn) for scope, (tn, fp, fn, tp) in cells.items()}

    def reasons(self, sources: Sequence[str] = ()) -> dict[str, int]:
        """How many voids have which reason, the most frequent first."""
        column, n = _verdicts.c, sa.func.count().label("n")
        query = self._of(sources, sa.select(column.reason, n)).where(column.p.is_(None))
        query = query.group_by(column.reason).order_by(n.desc(), column.reason)
        return {reason: count for chunk in self._read(query) for reason, count in chunk}

    def latencies(self, sources: Sequence[str] = (), *, tier: str = "") -> dict[int, int]:
        """How many verdicts (voids left out; with ``tier`` only what it settled) took how long.

        Returns:
            Milliseconds from intake to verdict, ascending, each with its number of verdicts: exact quantiles follow.
        """
        latency_ms = _verdicts.c.latency_ms
        query = self._of(sources, sa.select(latency_ms, sa.func.count())).where(
            latency_ms.is_not(None), _verdicts.c.p.is_not(None)
        )
        if tier:
            query = query.where(_verdicts.c.tier == tier)
        return {ms: n for chunk in self._read(query.group_by(latency_ms).order_by(latency_ms)) for ms, n in chunk}

    def quarantined(self, sources: Sequence[str] = (), *, reason: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """The voids, latest first, at most ``limit``; with ``reason`` only those of exactly that reason."""
        query = self._of(sources, sa.select(_verdicts)).where(_verdicts.c.p.is_(None))
        if reason:
            query = query.where(_verdicts.c.reason == reason)
        query = query.order_by(_verdicts.c.settled_ms.desc(), _verdicts.c.source, _verdicts.c.position).limit(limit)
        return [_row(values) for chunk in self._read(query) for values in chunk]

    def row(self, source: str, position: int) -> dict[str, Any] | None:
        """The row of one image, verdict or void; None: there is none (yet)."""
        query = sa.select(_verdicts).where(_verdicts.c.source == source, _verdicts.c.position == position)
        return next((_row(values) for chunk in self._read(query) for values in chunk), None)

    def export(self, path: Path) -> int:
        """Writes all rows, by source and position, to a .parquet or .csv file; an old one is replaced when all is done.

        The columns are the table's, sha256 in hex, votes as JSON arrays of a Vote's fields.

        Returns:
            Rows written.

        Raises:
            UsageError: the name ends in neither.
            DiskError: the file cannot be written; an old one is still there.
            ServerError: the database cannot be read.
        """
        if path.suffix not in (".parquet", ".csv"):
            raise UsageError(f"cannot export to {path.name!r}: the name must end in .parquet or .csv")
        part = path.with_name(path.name + ".part")
        query = sa.select(_verdicts).order_by(_verdicts.c.source, _verdicts.c.position)
        n = 0
        try:
            with _writer(part) as writer:
                for chunk in self._read(query):
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

    def _values(self, verdict: Verdict, gen: int) -> tuple[Any, ...]:
        """The row of one verdict, in the table's order."""
        item = verdict.item
        return (
            item.source,
            item.position,
            verdict.p,
            None if item.label == UNLABELLED else item.label,
            verdict.tier,
            verdict.reason,
            # Free text, often an exception's: PostgreSQL refuses a NUL, which would block the collector for ever.
            verdict.detail.replace("\0", ""),
            item.origin,
            int(item.seen),
            self._votes_json.encode(item.votes).decode(),
            # Two machines' clocks may differ by more than a verdict takes.
            max(0, verdict.settled_ms - item.taken_ms) if item.taken_ms and verdict.settled_ms else None,
            self._profile,
            item.sha256,
            *item.size_px,
            item.taken_ms,
            verdict.settled_ms,
            gen,
        )

    def _read(self, query: sa.Select[Any]) -> Iterator[Sequence[Sequence[Any]]]:
        """The result in chunks: as one moment's picture, whatever is written meanwhile."""
        with self._reported(), self._engine.connect() as connection:
            yield from connection.execution_options(yield_per=CHUNK_ROWS).execute(query).partitions()

    @staticmethod
    def _of(sources: Sequence[str], query: sa.Select[Any]) -> sa.Select[Any]:
        return query.where(_verdicts.c.source.in_(sources)) if sources else query

    def _sqlite(self, url: sa.URL, create: bool, busy_s: float) -> sa.Engine:
        if url.drivername not in ("sqlite", "sqlite+pysqlite") or url.query or url.host:
            raise ConfigError(f"database URL {self._name!r}: {_FORMS}")
        if url.database in (None, "", ":memory:"):
            raise ConfigError(
                f"database URL {self._name!r} names no file, and verdicts must outlive the process: {_FORMS}"
            )
        path = Path(str(url.database))
        if not create and not path.exists():
            raise ConfigError(f"there is no verdict database at {path}; the collector makes it with its first start")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(
                f"cannot make the folder {path.parent}: {error.strerror}; choose another database URL"
            ) from None
        engine = sa.create_engine(url, connect_args={"timeout": busy_s})

        @sa.event.listens_for(engine, "connect")
        def durable(connection: sqlite3.Connection, _: object) -> None:
            mode = _write_ahead(connection, busy_s)
            if mode != "wal":
                raise ConfigError(
                    f"{self._name}: no write-ahead log possible there (got {mode}); put it on a local disk"
                )
            connection.execute("PRAGMA synchronous=FULL")
            # 64 MB of log instead of 4: a page that many sources touch is then copied into the file less often.
            connection.execute("PRAGMA wal_autocheckpoint=16000")

        return engine

    def _postgresql(self, url: sa.URL, busy_s: float) -> sa.Engine:
        if url.drivername not in ("postgresql", "postgresql+psycopg"):
            raise ConfigError(f"database URL {self._name!r}: {_FORMS}")
        options = f"-c lock_timeout={int(busy_s * 1000)} -c synchronous_commit=on"
        try:
            # paramstyle: the upsert is to have its places in the table's order, not by name.
            return sa.create_engine(
                url.set(drivername="postgresql+psycopg"),
                paramstyle="format",
                pool_pre_ping=True,
                connect_args={"connect_timeout": max(2, int(busy_s)), "options": options},
            )
        except ImportError:
            raise ConfigError(f"{self._name} needs psycopg: pip install 'natix-fleet[postgres]'") from None

    def _prepare(self, connection: sa.Connection, create: bool) -> None:
        """Makes the tables where there are none, the row of ``verdicts_meta`` last; refuses those of others."""
        if connection.dialect.name == "postgresql":
            # Two that start at once would both create: IF NOT EXISTS does not look at what is not committed yet.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('verdicts_meta'))")
        there = sa.inspect(connection).get_table_names()
        version = connection.scalar(sa.select(_meta.c.schema_version)) if _meta.name in there else None
        if version is None:
            if not create:
                raise ConfigError(
                    f"{self._name} holds no verdicts; the collector makes its tables with its first start"
                )
            if _verdicts.name in there and _meta.name not in there:
                raise ConfigError(
                    f"{self._name} has a table {_verdicts.name!r} of another program; choose another database"
                )
            for table in (_meta, _verdicts):
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in _verdicts.indexes:
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
            known = sa.literal(1), sa.literal(SCHEMA_VERSION)
            first = sa.select(*known).where(~sa.exists().where(_meta.c.id == 1))
            connection.execute(sa.insert(_meta).from_select(["id", "schema_version"], first))
        elif version > SCHEMA_VERSION:
            raise ConfigError(
                f"{self._name} has schema {version}, this natix-fleet knows {SCHEMA_VERSION}: update natix-fleet"
            )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns every failure of the database into one line with its cause and its remedy."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise _fleet_error(self._name, error) from None


def _write_ahead(connection: sqlite3.Connection, busy_s: float) -> str:
    """Switches the log on; SQLite itself does not wait for others that do so in the same moment."""
    give_up_s = time.monotonic() + busy_s
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                raise
        time.sleep(0.01)


def _fleet_error(name: str, error: Exception) -> FleetError:
    origin = error.orig if isinstance(error, DBAPIError) and error.orig else error
    cause = " ".join(str(origin).split())
    code = str(getattr(origin, "sqlite_errorname", None) or getattr(origin, "sqlstate", None) or "")
    kind, meaning = next((kind, meaning) for prefixes, kind, meaning in _PROBLEMS if code.startswith(prefixes))
    return kind(f"{name}: {meaning} ({cause})")


def _row(values: Sequence[Any]) -> dict[str, Any]:
    row = dict(zip(_EXPORTED.names, values, strict=True))
    votes = msgspec.json.decode(row["votes"], type=tuple[Vote, ...])
    return row | {"seen": bool(row["seen"]), "sha256": row["sha256"].hex(), "votes": votes}


def _writer(path: Path) -> Any:
    if path.suffixes[-2:-1] == [".csv"]:
        return pyarrow.csv.CSVWriter(path, _EXPORTED)
    return pyarrow.parquet.ParquetWriter(path, _EXPORTED)
