"""The journal of what was admitted: on the disk before it counts, readable after any crash."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import AccountError, BusyError, DiskError, UsageError
from producers.admitted import Header, read_journal
from producers.journal import Journal, journal_path

SOURCE = "roadwork-photos.20260102t030405"


def start(folder: Path, source: str = SOURCE) -> Journal:
    return Journal.create(
        folder, source, profile="0123456789abcdef", spec="photos/", limit=None, started_ms=1_700_000_000_000
    )


def admit(journal: Journal, count: int = 3) -> None:
    """``count`` positions: labels 1, 0, none in turn, the origin changes every ten, every seventh was seen."""
    positions = range(journal.end, journal.end + count)
    journal.admitted(
        positions.start,
        positions.stop,
        labels=[(1, 0, -1)[p % 3] for p in positions],
        origins=[f"camera-{p // 10}" for p in positions],
        seen=[p % 7 == 0 for p in positions],
        bad=[(p, "truncated") for p in positions if p % 50 == 49],
    )


def written(folder: Path, *counts: int) -> Path:
    with start(folder) as journal:
        for count in counts:
            admit(journal, count)
    return journal_path(folder, SOURCE)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Header, labels, origins, seen and bad come back by position, over lines of several lengths."""
    report = read_journal(written(tmp_path / "var" / "journal", 1, 64, 35))
    assert report.header == Header(
        source=SOURCE, profile="0123456789abcdef", spec="photos/", limit=None, started_ms=1_700_000_000_000
    )
    assert report.end == 100
    assert [report.label(p) for p in range(4)] == [1, 0, -1, 1]
    assert [report.origin(p) for p in (0, 9, 10, 99)] == ["camera-0", "camera-0", "camera-1", "camera-9"]
    assert [p for p in range(30) if report.seen(p)] == [0, 7, 14, 21, 28]
    assert report.bad == {49: "truncated", 99: "truncated"}
    assert report.origins() == [f"camera-{i}" for i in range(10)]
    assert report.torn_bytes == 0


def test_a_line_is_json_with_runs_of_origins(tmp_path: Path) -> None:
    """The file is one JSON object a line, as the documentation shows it."""
    with start(tmp_path) as journal:
        journal.admitted(0, 3, labels=[1, 0, -1], origins=["a", "a", "b"], seen=[False] * 3, bad=[(2, "empty")])
    lines = journal_path(tmp_path, SOURCE).read_text().splitlines()
    assert lines[1] == '{"from":0,"to":3,"labels":"10-","origins":[["a",2],["b",1]],"bad":[[2,"empty"]]}'


def test_a_journal_cut_anywhere_in_its_last_line_goes_on(tmp_path: Path) -> None:
    """Cut at every byte of its last line, it reads up to the line before, and reopened it takes the line again."""
    path = written(tmp_path, 20, 20)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for left in range(last, len(whole)):
        path.write_bytes(whole[:left])
        report = read_journal(path)
        assert (report.end, report.torn_bytes) == (20, left - last)
        with Journal.reopen(tmp_path, SOURCE) as journal:
            assert journal.end == 20
            admit(journal, 20)
        assert path.read_bytes() == whole


def test_zeros_behind_a_power_failure_are_a_torn_tail(tmp_path: Path) -> None:
    """A file system may leave zeros where the last write was to come: that is a torn line as well."""
    path = written(tmp_path, 5)
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert read_journal(path).torn_bytes == 4096
    with Journal.reopen(tmp_path, SOURCE) as journal:
        admit(journal)
    assert read_journal(path).end == 8


@pytest.mark.parametrize("damage", [b"\0" * 9, b"\xff\xfe{", b'{"from":5}'])
def test_damage_in_the_middle_is_an_error(tmp_path: Path, damage: bytes) -> None:
    """A damaged line with lines behind it is no crash's trace: nobody may account by this file, nor append to it."""
    path = written(tmp_path, 5, 5, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage + b"\n", *lines[3:]]))
    with pytest.raises(AccountError, match="line 3 is damaged"):
        read_journal(path)
    before = path.read_bytes()
    with pytest.raises(AccountError, match="line 3 is damaged"):
        Journal.reopen(tmp_path, SOURCE)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_missing_or_doubled_line_is_an_error(tmp_path: Path, line: int) -> None:
    """Positions that are missing or written twice are told with their line."""
    path = written(tmp_path, 5, 5, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: line + 1] + lines[line:]))
    with pytest.raises(AccountError, match=f"line {line + 2}: positions"):
        read_journal(path)
    if line < 3:
        path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
        with pytest.raises(AccountError, match=f"line {line + 1}: positions"):
            read_journal(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"from":0,"to":2,"labels":"1","origins":[["a",2]]}',
        '{"from":0,"to":2,"labels":"1x","origins":[["a",2]]}',
        '{"from":0,"to":2,"labels":"11","origins":[["a",3]]}',
        '{"from":0,"to":2,"labels":"11","origins":[["a",3],["b",-1]]}',
        '{"from":0,"to":2,"labels":"11","origins":[["a",2]],"seen":"1"}',
        '{"from":0,"to":2,"labels":"11","origins":[["a",2]],"bad":[[2,"empty"]]}',
        '{"from":0,"to":0,"labels":"","origins":[]}',
    ],
)
def test_a_line_that_contradicts_itself_is_an_error(tmp_path: Path, line: str) -> None:
    """Labels, origins, seen and bad must fit the positions of their line."""
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    with pytest.raises(AccountError, match="line 2: "):
        read_journal(path)


@pytest.mark.parametrize("text", [b"", b"\n", b"{}\n", b'{"source":"x"', b"\xff\n"])
def test_a_file_without_a_header_is_no_journal(tmp_path: Path, text: bytes) -> None:
    """A journal is under its name only with its header: anything else is an error, not an empty account."""
    path = written(tmp_path)
    path.write_bytes(text)
    with pytest.raises(AccountError, match="line 1 is no header"):
        read_journal(path)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    """A version that this process doesn't know is not guessed at."""
    path = written(tmp_path, 3)
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(AccountError, match="version 2"):
        read_journal(path)


@pytest.mark.parametrize(("start_at", "end_at"), [(4, 6), (6, 8), (5, 5), (5, 4), (0, 5)])
def test_gaps_and_overlaps_are_refused(tmp_path: Path, start_at: int, end_at: int) -> None:
    """Only positions that follow its end are taken; a refused call writes nothing and the next right one is taken."""
    with start(tmp_path) as journal:
        admit(journal, 5)
        count = max(0, end_at - start_at)
        with pytest.raises(AccountError, match="do not follow its end, 5"):
            journal.admitted(start_at, end_at, labels=[1] * count, origins=["a"] * count, seen=[False] * count)
        admit(journal, 2)
    assert read_journal(journal.path).end == 7


def test_a_label_too_few_is_refused(tmp_path: Path) -> None:
    """Each position needs its label, origin and seen."""
    with start(tmp_path) as journal, pytest.raises(AccountError, match="2 positions with 1 labels"):
        journal.admitted(0, 2, labels=[1], origins=["a"] * 2, seen=[False] * 2)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """A second producer is told that the journal is taken, before and after the first one's crash in the middle."""
    with start(tmp_path):
        with pytest.raises(BusyError, match="another producer"):
            Journal.reopen(tmp_path, SOURCE)
        with pytest.raises(BusyError, match="journal already"):
            start(tmp_path)
    Journal.reopen(tmp_path, SOURCE).close()


def test_no_draft_remains(tmp_path: Path) -> None:
    """The folder holds journals only."""
    written(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == [f"{SOURCE}.jsonl"]


@pytest.mark.parametrize("source", ["", "../x", "a/b", "A", ".hidden", "a\n", "x" * 129])
def test_a_source_that_is_no_file_name_is_refused(tmp_path: Path, source: str) -> None:
    """A source's name may not lead anywhere else."""
    with pytest.raises(UsageError, match="source name"):
        start(tmp_path, source)


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    """Closing twice is harmless, writing after it is one clear line."""
    journal = start(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(DiskError, match="it is closed"):
        admit(journal)


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """When the disk takes only a part of a line, that part is taken back; with room again the journal goes on."""
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = start(tmp_path)
    admit(journal, 30)
    whole = journal.path.read_bytes()
    try:
        # The kernel ends a write at the limit as it does at the end of a disk: a part first, then an error.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
        with pytest.raises(DiskError, match=r"\.jsonl: File too large$"):
            admit(journal, 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signal_before)
    assert journal.path.read_bytes() == whole
    admit(journal, 30)
    journal.close()
    assert read_journal(journal.path).end == 60


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """A file where the folder should be, or a journal that isn't there, is a DiskError with its path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file"):
        start(tmp_path / "file" / "journal")
    with pytest.raises(DiskError, match="No such file"):
        Journal.reopen(tmp_path, SOURCE)
    with pytest.raises(DiskError, match="No such file"):
        read_journal(tmp_path / "none.jsonl")


WRITER = """
import sys
from pathlib import Path
from producers.journal import Journal
with Journal.create(Path(sys.argv[1]), "killed", profile="", spec="", limit=None, started_ms=0) as journal:
    for i in range(100_000):
        journal.admitted(i * 50, i * 50 + 50, labels=[1] * 50, origins=["a"] * 50, seen=[False] * 50)
        print(journal.end, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 7, 40])
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, lines: int) -> None:
    """A killed writer's journal has every line that was acknowledged, and can be resumed."""
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, cwd=root) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(lines)]
        writer.kill()
        told += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    assert read_journal(tmp_path / "killed.jsonl").end >= told[-1]
    with Journal.reopen(tmp_path, "killed") as journal:
        admit(journal, 10)
    assert read_journal(tmp_path / "killed.jsonl").end == journal.end
