"""The verdict database: one row an image, written by the collector, read by reports. SQLite, or PostgreSQL by URL.

A row's id is (source, position). Writing it again changes it only under a generation no smaller than its own, so a
collector may repeat a transaction whose end it did not see. Once write() returns, the rows are on disk.
"""

from collections.abc import Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, Self

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.dialects import postgresql, sqlite

from configs.errors import FleetError
from routing.failpoints import Window, failpoint
from routing.messages import UNLABELLED, Verdict, Vote
from workers.mcc import Counts
from workers.verdict_connection import connect, reported
from workers.verdict_schema import VERDICTS, prepare

#: Rows in memory at once while reading or exporting.
CHUNK_ROWS = 16_384


class Labelled(Struct, frozen=True, gc=False):
    """A labelled verdict, for those who learn from it."""

    source: str
    position: int
    origin: str
    #: 1 roadwork, 0 none.
    label: int
    #: In the order in which they were cast.
    votes: tuple[Vote, ...]


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
        self._engine, self._name = connect(url, create=create, busy_s=busy_s)
        try:
            with reported(self._name), self._engine.begin() as connection:
                prepare(connection, self._name, create=create)
        except FleetError:
            self.close()
            raise
        insert = (sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert)(VERDICTS)
        changed = {column.name: insert.excluded[column.name] for column in VERDICTS.columns if not column.primary_key}
        upsert = insert.on_conflict_do_update(
            index_elements=[VERDICTS.c.source, VERDICTS.c.position],
            set_=changed,
            where=insert.excluded.gen >= VERDICTS.c.gen,
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
        with reported(self._name), self._engine.begin() as connection:
            connection.exec_driver_sql(self._upsert, values)
            failpoint(Window.IN_TRANSACTION)

    def ids(self, source: str) -> Iterator[int]:
        """The positions of ``source`` that have a row, ascending."""
        wanted = sa.select(VERDICTS.c.position).where(VERDICTS.c.source == source).order_by(VERDICTS.c.position)
        for chunk in self._read(wanted):
            yield from (position for (position,) in chunk)

    def recount(self, sources: Sequence[str] = ()) -> dict[str, Counts]:
        """Counts anew every labelled verdict that is no void.

        Returns:
            By the collector's scopes: "all", "tier:NAME", "origin:NAME"; the same under "seen/" for photos that a model
            was trained on, which count in no other.
        """
        column = VERDICTS.c
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

    def labelled(self, sources: Sequence[str] = ()) -> Iterator[Labelled]:
        """Every labelled verdict on a photo that no model was trained on, by source and position; no voids."""
        column = VERDICTS.c
        query = self._of(sources, sa.select(column.source, column.position, column.origin, column.label, column.votes))
        query = query.where(column.label.is_not(None), column.p.is_not(None), column.seen == 0)
        votes = msgspec.json.Decoder(tuple[Vote, ...])
        for chunk in self._read(query.order_by(column.source, column.position)):
            for source, position, origin, label, text in chunk:
                yield Labelled(source, position, origin, label, votes.decode(text))

    def reasons(self, sources: Sequence[str] = ()) -> dict[str, int]:
        """How many voids have which reason, the most frequent first."""
        column, n = VERDICTS.c, sa.func.count().label("n")
        query = self._of(sources, sa.select(column.reason, n)).where(column.p.is_(None))
        query = query.group_by(column.reason).order_by(n.desc(), column.reason)
        return {reason: count for chunk in self._read(query) for reason, count in chunk}

    def latencies(self, sources: Sequence[str] = (), *, tier: str = "") -> dict[int, int]:
        """How many verdicts (voids left out; with ``tier`` only what it settled) took how long.

        Returns:
            Milliseconds from intake to verdict, ascending, each with its number of verdicts: exact quantiles follow.
        """
        latency_ms = VERDICTS.c.latency_ms
        query = self._of(sources, sa.select(latency_ms, sa.func.count())).where(
            latency_ms.is_not(None), VERDICTS.c.p.is_not(None)
        )
        if tier:
            query = query.where(VERDICTS.c.tier == tier)
        return {ms: n for chunk in self._read(query.group_by(latency_ms).order_by(latency_ms)) for ms, n in chunk}

    def quarantined(self, sources: Sequence[str] = (), *, reason: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """The voids, latest first, at most ``limit``; with ``reason`` only those of exactly that reason."""
        query = self._of(sources, sa.select(VERDICTS)).where(VERDICTS.c.p.is_(None))
        if reason:
            query = query.where(VERDICTS.c.reason == reason)
        query = query.order_by(VERDICTS.c.settled_ms.desc(), VERDICTS.c.source, VERDICTS.c.position).limit(limit)
        return [_row(values) for chunk in self._read(query) for values in chunk]

    def row(self, source: str, position: int) -> dict[str, Any] | None:
        """The row of one image, verdict or void; None: there is none (yet)."""
        query = sa.select(VERDICTS).where(VERDICTS.c.source == source, VERDICTS.c.position == position)
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
        # pyarrow takes longer to import than most commands run.
        from workers.verdict_export import export_rows  # noqa: PLC0415

        return export_rows(self._read(sa.select(VERDICTS).order_by(VERDICTS.c.source, VERDICTS.c.position)), path)

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
        with reported(self._name), self._engine.connect() as connection:
            yield from connection.execution_options(yield_per=CHUNK_ROWS).execute(query).partitions()

    @staticmethod
    def _of(sources: Sequence[str], query: sa.Select[Any]) -> sa.Select[Any]:
        return query.where(VERDICTS.c.source.in_(sources)) if sources else query


def _row(values: Sequence[Any]) -> dict[str, Any]:
    row = dict(zip(VERDICTS.columns.keys(), values, strict=True))
    votes = msgspec.json.decode(row["votes"], type=tuple[Vote, ...])
    return row | {"seen": bool(row["seen"]), "sha256": row["sha256"].hex(), "votes": votes}
