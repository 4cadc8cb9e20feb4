"""The connection to the verdict database: SQLite or PostgreSQL by URL, and its failures in words that help."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from configs.errors import ConfigError, DiskError, FleetError, ServerError

_FORMS = "write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"

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
    (
        ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG", "22", "23", "42"),
        FleetError,
        "a row or a statement was refused, which waiting does not heal: please report it",
    ),
    (("SQLITE_NOTADB",), ConfigError, "the file is no SQLite database; choose another path"),
    (("SQLITE_CORRUPT",), ServerError, "the file is damaged; move it away and restore a copy"),
    (("SQLITE",), ServerError, "SQLite failed; try again"),
    (("",), ServerError, "no answer, or a refusal; check that the server runs and that the URL is right"),
)


def connect(url: str, *, create: bool, busy_s: float) -> tuple[sa.Engine, str]:
    """Makes the engine for a database URL; nothing is sent yet. Returns it with the URL's form for messages.

    Raises:
        ConfigError: the URL is wrong, its driver is not installed, or its file must be there and is not.
        DiskError: its folder cannot be made.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        # Not repeated here: it may hold a password.
        raise ConfigError(f"the database URL cannot be read: {_FORMS}") from None
    name = parsed.render_as_string(hide_password=True)
    if "sqlite" in parsed.drivername:
        return _sqlite(parsed, name, create, busy_s), name
    return _postgresql(parsed, name, busy_s), name


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Turns every failure of the database called ``name`` into one line with its cause and its remedy."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise _fleet_error(name, error) from None


def _sqlite(url: sa.URL, name: str, create: bool, busy_s: float) -> sa.Engine:
    if url.drivername not in ("sqlite", "sqlite+pysqlite") or url.query or url.host:
        raise ConfigError(f"database URL {name!r}: {_FORMS}")
    if url.database in (None, "", ":memory:"):
        raise ConfigError(f"database URL {name!r} names no file, and verdicts must outlive the process: {_FORMS}")
    path = Path(str(url.database))
    if not create and not path.exists():
        raise ConfigError(
            f"there is no verdict database at {path.absolute()}; the collector makes it with its first start, and "
            "natix-fleet run keeps its own: set NATIX_FLEET_DATABASE=sqlite:///var/run/verdicts.db"
        )
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
            raise ConfigError(f"{name}: no write-ahead log possible there (got {mode}); put it on a local disk")
        connection.execute("PRAGMA synchronous=FULL")
        # 64 MB of log instead of 4: a page that many sources touch is then copied into the file less often.
        connection.execute("PRAGMA wal_autocheckpoint=16000")

    return engine


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


def _postgresql(url: sa.URL, name: str, busy_s: float) -> sa.Engine:
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ConfigError(f"database URL {name!r}: {_FORMS}")
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
        raise ConfigError(f"{name} needs psycopg: pip install -e '.[postgres]'") from None


def _fleet_error(name: str, error: Exception) -> FleetError:
    origin = error.orig if isinstance(error, DBAPIError) and error.orig else error
    cause = " ".join(str(origin).split())
    code = str(getattr(origin, "sqlite_errorname", None) or getattr(origin, "sqlstate", None) or "")
    kind, meaning = next((kind, meaning) for prefixes, kind, meaning in _PROBLEMS if code.startswith(prefixes))
    return kind(f"{name}: {meaning} ({cause})")
