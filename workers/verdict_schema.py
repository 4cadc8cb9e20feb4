"""The tables of the verdict database: their columns, how they are made, which of them are not ours."""

import sqlalchemy as sa

from configs.errors import ConfigError

#: Raised when a column changes; a database of a later one is refused.
SCHEMA_VERSION = 1

_tables = sa.MetaData()

META = sa.Table(
    "verdicts_meta",
    _tables,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
)

VERDICTS = sa.Table(
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
    VERDICTS.c.settled_ms,
    sqlite_where=VERDICTS.c.p.is_(None),
    postgresql_where=VERDICTS.c.p.is_(None),
)


def prepare(connection: sa.Connection, name: str, *, create: bool) -> None:
    """Makes the tables where there are none, the row of ``verdicts_meta`` last; refuses those of others.

    Args:
        connection: in a transaction.
        name: the database's, for errors; no password in it.
        create: False: where there are none, that is an error.

    Raises:
        ConfigError: no tables and none to be made, or those of another program or of a newer natix-fleet.
    """
    if connection.dialect.name == "postgresql":
        # Two that start at once would both create: IF NOT EXISTS does not look at what is not committed yet.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('verdicts_meta'))")
    there = sa.inspect(connection).get_table_names()
    version = connection.scalar(sa.select(META.c.schema_version)) if META.name in there else None
    if version is None:
        if not create:
            raise ConfigError(f"{name} holds no verdicts; the collector makes its tables with its first start")
        if VERDICTS.name in there and META.name not in there:
            raise ConfigError(f"{name} has a table {VERDICTS.name!r} of another program; choose another database")
        for table in (META, VERDICTS):
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        for index in VERDICTS.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
        known = sa.literal(1), sa.literal(SCHEMA_VERSION)
        first = sa.select(*known).where(~sa.exists().where(META.c.id == 1))
        connection.execute(sa.insert(META).from_select(["id", "schema_version"], first))
    elif version > SCHEMA_VERSION:
        raise ConfigError(f"{name} has schema {version}, this natix-fleet knows {SCHEMA_VERSION}: update natix-fleet")
