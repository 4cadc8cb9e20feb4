"""The verdict database on real files, and on a real PostgreSQL where NATIX_FLEET_TEST_POSTGRES names an empty one."""

import csv
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from configs.errors import ConfigError, DiskError, FleetError, ServerError, UsageError
from routing.messages import UNLABELLED, Item, Verdict, Vote
from routing.patience import passing
from workers import verdicts
from workers.mcc import Counts
from workers.verdict_schema import SCHEMA_VERSION
from workers.verdicts import VerdictDatabase

POSTGRES = os.environ.get("NATIX_FLEET_TEST_POSTGRES", "")

TAKEN_MS = 1_790_000_000_000
GEN = 1_790_000_000_000_000


def _verdict(position: int, p: float | None = 0.9, **changes: object) -> Verdict:
    """A verdict of one vote; ``changes`` go to the item or the verdict, whichever has the field."""
    fields: dict[str, dict[str, object]] = {
        "item": {
            "source": "run-1",
            "position": position,
            "origin": "natix",
            "label": position % 2,
            "sha256": bytes([position % 256]) * 32,
            "stored_bytes": 20_000,
            "size_px": (224, 192),
            "taken_ms": TAKEN_MS,
            "votes": (Vote("small", "lite0", 0.25, 1.0, 12.5),),
        },
        "verdict": {"p": p, "tier": "small", "settled_ms": TAKEN_MS + 150},
    }
    for name, value in changes.items():
        fields["item" if name in Item.__struct_fields__ else "verdict"][name] = value
    item = Item(**fields["item"])  # type: ignore[arg-type]
    return Verdict(item=item, **fields["verdict"])  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.skipif(not POSTGRES, reason="no URL"))])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VerdictDatabase]:
    url = f"sqlite:///{tmp_path}/var/verdicts.db" if request.param == "sqlite" else POSTGRES
    with VerdictDatabase(url, profile="0123456789abcdef", busy_s=2) as opened:
        with opened._engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM verdicts")
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.db"


@pytest.fixture
def small(path: Path) -> Iterator[VerdictDatabase]:
    with VerdictDatabase(f"sqlite:///{path}", busy_s=0.1) as opened:
        yield opened


def test_a_row_keeps_all_that_a_verdict_says(database: VerdictDatabase) -> None:
    """Every column of a written verdict reads back as it was handed in."""
    database.write([(_verdict(7, 0.875, seen=True, reason="deadline", detail="9 s"), GEN)])
    assert database.row("run-1", 7) == {
        "source": "run-1",
        "position": 7,
        "p": 0.875,
        "label": 1,
        "tier": "small",
        "reason": "deadline",
        "detail": "9 s",
        "origin": "natix",
        "seen": True,
        "votes": (Vote("small", "lite0", 0.25, 1.0, 12.5),),
        "latency_ms": 150,
        "profile": "0123456789abcdef",
        "sha256": "07" * 32,
        "width_px": 224,
        "height_px": 192,
        "taken_ms": TAKEN_MS,
        "settled_ms": TAKEN_MS + 150,
        "gen": GEN,
    }
    assert database.row("run-1", 8) is None


def test_what_is_unknown_is_null(database: VerdictDatabase) -> None:
    """A void has no p, an unlabelled photo no label, a photo without intake time no latency."""
    database.write([(_verdict(0, None, label=UNLABELLED, taken_ms=0, votes=()), GEN)])
    row = database.row("run-1", 0) or {}
    assert (row["p"], row["label"], row["latency_ms"], row["votes"]) == (None, None, None, ())


def test_clocks_that_differ_give_no_negative_latency(database: VerdictDatabase) -> None:
    """A verdict that seems older than its photo took 0 ms."""
    database.write([(_verdict(0, settled_ms=TAKEN_MS - 5_000), GEN)])
    assert database.latencies() == {0: 1}


def test_text_of_any_kind_is_kept(database: VerdictDatabase) -> None:
    """Quotes, percent signs and emoji survive; a NUL, which PostgreSQL refuses, is left out instead of blocking."""
    detail = 'it\'s 100 % "broken"; DROP TABLE verdicts; %s ? 🚧\n'
    database.write([(_verdict(0, None, detail=detail + "\0end"), GEN)])
    assert (database.row("run-1", 0) or {})["detail"] == detail + "end"


def test_only_a_generation_as_new_replaces_a_row(database: VerdictDatabase) -> None:
    """An older verdict that comes late changes nothing; the same or a newer generation does."""
    for p, gen, kept in ((0.1, GEN, 0.1), (0.2, GEN - 1, 0.1), (0.3, GEN, 0.3), (0.4, GEN + 1, 0.4), (0.5, GEN, 0.4)):
        database.write([(_verdict(0, p), gen)])
        assert (database.row("run-1", 0) or {})["p"] == kept
    assert list(database.ids("run-1")) == [0]


def test_one_write_may_name_an_image_twice(database: VerdictDatabase) -> None:
    """Within a transaction the newest generation wins, whatever the order."""
    database.write([(_verdict(0, 0.1), GEN), (_verdict(0, 0.2), GEN + 5), (_verdict(0, 0.3), GEN + 2)])
    assert (database.row("run-1", 0) or {})["p"] == 0.2


def test_a_repeated_write_changes_nothing(database: VerdictDatabase) -> None:
    """A collector that saw no reply may write the same rows again."""
    rows = [(_verdict(i), GEN + i) for i in range(300)]
    database.write(rows)
    before = [database.row("run-1", i) for i in range(300)]
    database.write(rows)
    assert [database.row("run-1", i) for i in range(300)] == before


def test_an_empty_write_is_nothing(database: VerdictDatabase) -> None:
    """No rows, no transaction, no error."""
    database.write([])
    assert list(database.ids("run-1")) == []


def test_ids_come_in_order_and_per_source(database: VerdictDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account reads each source's positions ascending, in chunks, voids included."""
    monkeypatch.setattr(verdicts, "CHUNK_ROWS", 7)
    positions = list(range(0, 200, 3))
    shuffled = random.Random(1).sample(positions, len(positions))
    database.write([(_verdict(i, None if i % 5 == 0 else 0.5), GEN) for i in shuffled])
    database.write([(_verdict(1, source="run-10"), GEN)])
    assert list(database.ids("run-1")) == positions
    assert list(database.ids("run-10")) == [1]
    assert list(database.ids("run-2")) == []


def test_a_recount_counts_by_the_collectors_scopes(database: VerdictDatabase) -> None:
    """Labelled verdicts count in all, tier and origin, seen photos under seen/ only, voids and unlabelled nowhere."""
    database.write(
        [
            (_verdict(0, 0.5, label=0), GEN),
            (_verdict(1, 0.5, label=1), GEN),
            (_verdict(2, 0.9, label=1, tier="large"), GEN),
            (_verdict(3, 0.9, label=0, origin="a|b"), GEN),
            (_verdict(4, 0.9, label=1, seen=True), GEN),
            (_verdict(5, None, label=1), GEN),
            (_verdict(6, 0.9, label=UNLABELLED), GEN),
            (_verdict(0, 0.9, label=1, source="run-2"), GEN),
        ]
    )
    assert database.recount(["run-1"]) == {
        "all": Counts(tp=1, tn=1, fp=1, fn=1),
        "tier:small": Counts(tn=1, fp=1, fn=1),
        "tier:large": Counts(tp=1),
        "origin:natix": Counts(tp=1, tn=1, fn=1),
        "origin:a_b": Counts(fp=1),
        "seen/all": Counts(tp=1),
        "seen/tier:small": Counts(tp=1),
        "seen/origin:natix": Counts(tp=1),
    }
    assert database.recount()["all"] == Counts(tp=2, tn=1, fp=1, fn=1)
    assert database.recount(["run-3"]) == {"all": Counts()}


def test_latencies_are_a_histogram_of_verdicts(database: VerdictDatabase) -> None:
    """Each duration in ms with how many took it, ascending, voids left out, by source if asked."""
    durations_ms = {0: 30, 1: 10, 2: 30}
    database.write([(_verdict(i, settled_ms=TAKEN_MS + ms), GEN) for i, ms in durations_ms.items()])
    database.write([(_verdict(3, None), GEN), (_verdict(0, source="run-2", settled_ms=TAKEN_MS + 5), GEN)])
    assert list(database.latencies(["run-1"]).items()) == [(10, 1), (30, 2)]
    assert database.latencies() == {5: 1, 10: 1, 30: 2}


def test_voids_are_listed_latest_first(database: VerdictDatabase) -> None:
    """The list holds voids only, newest first, by source and by reason if asked, and no more than the limit."""
    database.write([(_verdict(i, 0.5), GEN) for i in range(3)])
    for i, reason in enumerate(["shed", "not an image", "not an image"], start=3):
        database.write([(_verdict(i, None, reason=reason, settled_ms=TAKEN_MS + i), GEN)])
    assert [row["position"] for row in database.quarantined()] == [5, 4, 3]
    assert [row["position"] for row in database.quarantined(reason="not an image")] == [5, 4]
    assert [row["position"] for row in database.quarantined(limit=1)] == [5]
    assert database.quarantined(["run-2"]) == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_export_holds_every_row(
    database: VerdictDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """All rows in order with the table's columns, written in chunks; nothing half written stays behind."""
    monkeypatch.setattr(verdicts, "CHUNK_ROWS", 7)
    detail = 'comma, "quote"\nand a new line'
    database.write([(_verdict(i, None if i == 3 else i / 40, detail=detail), GEN) for i in range(40)])
    target = tmp_path / f"verdicts{suffix}"
    target.write_text("an older export")
    assert database.export(target) == 40
    if suffix == ".csv":
        with target.open(newline="") as file:
            rows: list[dict[str, object]] = list(csv.DictReader(file))
        assert (rows[3]["p"], rows[4]["p"]) == ("", "0.1")
    else:
        rows = pyarrow.parquet.read_table(target).to_pylist()
        assert (rows[3]["p"], rows[4]["p"]) == (None, 0.1)
    assert [int(str(row["position"])) for row in rows] == list(range(40))
    assert rows[5]["sha256"] == "05" * 32
    assert rows[5]["detail"] == detail
    assert json.loads(str(rows[5]["votes"])) == [["small", "lite0", 0.25, 1.0, 12.5]]
    assert [file.name for file in tmp_path.glob("verdicts*")] == [target.name]


def test_an_export_of_nothing_is_a_file_with_its_columns(small: VerdictDatabase, tmp_path: Path) -> None:
    """An empty database exports the header."""
    assert small.export(tmp_path / "empty.csv") == 0
    assert (tmp_path / "empty.csv").read_text().startswith('"source","position","p"')


def test_an_export_that_cannot_be_written_says_so(small: VerdictDatabase, tmp_path: Path) -> None:
    """An unknown ending is the user's mistake; a missing folder and a full disk are the disk's, and leave no part."""
    with pytest.raises(UsageError, match=r"\.parquet or \.csv"):
        small.export(tmp_path / "verdicts.xlsx")
    with pytest.raises(DiskError, match="No such file"):
        small.export(tmp_path / "nowhere" / "verdicts.csv")
    small.write([(_verdict(0), GEN)])
    (tmp_path / "full.csv.part").symlink_to("/dev/full")
    with pytest.raises(DiskError, match="No space left"):
        small.export(tmp_path / "full.csv")
    assert not list(tmp_path.glob("full*"))


def test_a_write_is_on_disk_when_it_returns(small: VerdictDatabase, path: Path) -> None:
    """WAL with synchronous=FULL on every connection, and another reader sees the row at once."""
    small.write([(_verdict(0), GEN)])
    with small._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM verdicts").fetchone() == (1,)
    other.close()


def test_a_full_disk_is_a_disk_error_and_writes_nothing(small: VerdictDatabase) -> None:
    """Where the file may not grow, the whole transaction fails in one line that names the remedy; later it goes on."""
    rows = [(_verdict(i), GEN) for i in range(5_000)]
    with small._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskError, match=r"the disk is full; free some space, nothing was written \(.*\)$"):
        small.write(rows)
    assert list(small.ids("run-1")) == []
    with small._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=100000")
    small.write(rows)
    assert len(list(small.ids("run-1"))) == 5_000


def test_a_refused_row_is_not_waited_for(small: VerdictDatabase) -> None:
    """A row that the database refuses for what it is will never be taken: no error of the kind that is waited for."""
    with small._engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE INSERT ON verdicts WHEN new.position = 3 BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(FleetError, match="a row or a statement was refused") as caught:
        small.write([(_verdict(i), GEN) for i in range(5)])
    assert not passing(caught.value)
    assert list(small.ids("run-1")) == []


def test_a_locked_database_is_a_server_error_and_reads_go_on(small: VerdictDatabase, path: Path) -> None:
    """While another process writes, a write gives up after busy_s; readers see the last commit."""
    small.write([(_verdict(0), GEN)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started_s = time.monotonic()
    with pytest.raises(ServerError, match="keeps it locked"):
        small.write([(_verdict(1), GEN)])
    assert time.monotonic() - started_s < 5
    assert list(small.ids("run-1")) == [0]
    other.execute("ROLLBACK")
    other.close()
    small.write([(_verdict(1), GEN)])
    assert list(small.ids("run-1")) == [0, 1]


def test_a_reader_sees_one_moment(small: VerdictDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows written while somebody reads are not in what they read."""
    monkeypatch.setattr(verdicts, "CHUNK_ROWS", 2)
    small.write([(_verdict(i), GEN) for i in range(10)])
    reading = small.ids("run-1")
    first = next(reading)
    small.write([(_verdict(i), GEN) for i in range(10, 20)])
    assert [first, *reading] == list(range(10))


def test_threads_may_share_one(small: VerdictDatabase) -> None:
    """Four threads that write their own sources lose no row."""
    shared = VerdictDatabase(str(small._engine.url), busy_s=30)

    def fill(source: str) -> None:
        for start in range(0, 400, 40):
            shared.write([(_verdict(i, source=source), GEN) for i in range(start, start + 40)])

    threads = [threading.Thread(target=fill, args=(f"run-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(list(shared.ids(f"run-{n}")) == list(range(400)) for n in range(4))
    shared.close()


@pytest.mark.parametrize(
    "url",
    [
        "verdicts.db",
        "postgresql://user:hunter2@host:port/x",
        "mysql://user:hunter2@host/x",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///x.db?mode=ro",
        "sqlite+aiosqlite:///x.db",
        "postgresql+asyncpg://user:hunter2@host/x",
    ],
)
def test_a_wrong_url_is_a_configuration_error_without_its_password(url: str) -> None:
    """What is neither an SQLite file nor PostgreSQL is refused in one line that shows the forms, and no secret."""
    with pytest.raises(ConfigError) as caught:
        VerdictDatabase(url)
    assert "sqlite:///PATH or postgresql://" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_postgresql_that_is_not_there_is_said_in_one_line() -> None:
    """Without its driver the remedy is an install, with it the server is what is missing; no password either way."""
    with pytest.raises((ConfigError, ServerError), match=r"'\.\[postgres\]'|check that the server runs") as caught:
        VerdictDatabase("postgresql://fleet:hunter2@127.0.0.1:9/verdicts", busy_s=2)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_cannot_be_is_a_disk_error(tmp_path: Path) -> None:
    """A file where a folder should be, a folder where the file should be, and a device are refused with the cause."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, cause in ((tmp_path / "file" / "v.db", "folder"), (tmp_path / "folder", "cannot be written")):
        with pytest.raises(DiskError, match=cause):
            VerdictDatabase(f"sqlite:///{path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_disk_error(tmp_path: Path) -> None:
    """An unwritable folder is named."""
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="permissions"):
        VerdictDatabase(f"sqlite:///{tmp_path}/v.db")


def test_a_file_of_another_kind_is_left_alone(path: Path) -> None:
    """A photo given as the database is refused and not changed."""
    path.write_bytes(b"\xff\xd8\xff" * 1000)
    with pytest.raises(ConfigError, match="no SQLite database"):
        VerdictDatabase(f"sqlite:///{path}")
    assert path.read_bytes() == b"\xff\xd8\xff" * 1000


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    """A table called verdicts that is not ours is not written to."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE verdicts (court TEXT)")
    other.close()
    with pytest.raises(ConfigError, match="another program"):
        VerdictDatabase(f"sqlite:///{path}")


def test_a_newer_schema_is_refused_and_ours_opens_again(small: VerdictDatabase, path: Path) -> None:
    """A second opening keeps the rows; a later schema number is not read."""
    small.write([(_verdict(0), GEN)])
    with VerdictDatabase(f"sqlite:///{path}", create=False) as again:
        assert list(again.ids("run-1")) == [0]
    with sqlite3.connect(path) as newer:
        newer.execute("UPDATE verdicts_meta SET schema_version = ?", (SCHEMA_VERSION + 1,))
    newer.close()
    with pytest.raises(ConfigError, match=f"schema {SCHEMA_VERSION + 1}.*update natix-fleet"):
        VerdictDatabase(f"sqlite:///{path}")


def test_a_reader_makes_no_database(path: Path) -> None:
    """With create=False a mistyped path is an error, and no empty file appears."""
    with pytest.raises(ConfigError, match="no verdict database at"):
        VerdictDatabase(f"sqlite:///{path}", create=False)
    assert not path.exists()
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(ConfigError, match="holds no verdicts"):
        VerdictDatabase(f"sqlite:///{path}", create=False)


def test_many_may_open_a_new_database_at_once(path: Path) -> None:
    """Collectors that start together make the tables once, and none fails."""
    failures: list[FleetError] = []

    def start() -> None:
        try:
            VerdictDatabase(f"sqlite:///{path}").close()
        except FleetError as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT schema_version FROM verdicts_meta").fetchall() == [(SCHEMA_VERSION,)]
    connection.close()


def test_a_relative_url_makes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile's default, sqlite:///var/verdicts.db, works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    VerdictDatabase("sqlite:///var/verdicts.db").close()
    assert (tmp_path / "var" / "verdicts.db").exists()
