"""Feeding a source into a real ledger: batches, lingering, resuming, going back, waiting."""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs.errors import BusyError
from configs.profile import Admission as Bounds
from configs.profile import Batch, Profile, Tier
from ops.server import EmbeddedServer
from producers.admission import Admission
from producers.admitted import read_journal
from producers.feed import Feed, Pace
from producers.journal import Journal
from producers.looped import Looped
from producers.sources import Photo
from routing.audit import audit
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.messages import decode_items, decode_verdicts
from routing.store import ServerPhotos


def jpeg(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (32, 32), (shade % 256, 100, 100)).save(data, "JPEG")
    return data.getvalue()


class Photos:
    """A source of a test: small JPEGs, some of them broken, and a pause where one is wanted."""

    name = "test"
    note = ""

    def __init__(self, total: int, bad: frozenset[int] = frozenset(), pause_at: int = -1) -> None:
        self.total: int | None = total
        self._bad = bad
        self._pause_at = pause_at
        self.resume = threading.Event()
        self.starts: list[int] = []

    def photos(self, start: int) -> Iterator[Photo]:
        self.starts.append(start)
        for i in range(start, self.total or 0):
            if i == self._pause_at:
                self.resume.wait(60)
            data = b"not a photo" if i in self._bad else jpeg(i)
            yield Photo(name=str(i), data=data, origin="o", label=i % 2)


class Line:
    """A producer on a real ledger."""

    def __init__(self, server: EmbeddedServer, client: Any, folder: Path, max_items: int = 1000) -> None:
        self.profile = Profile(
            name="test",
            tiers=(Tier(name="first", model="scout-s"),),
            batch=Batch(max_items=4),
            admission=Bounds(max_items=max_items),
        )
        self.server, self.client, self.folder = server, client, folder
        self.ledger = Ledger(client)
        self.ending = threading.Event()

    def journal(self) -> Journal:
        if (self.folder / "s-1.jsonl").exists():
            return Journal.reopen(self.folder, "s-1")
        return Journal.create(self.folder, "s-1", profile="x", spec="test", limit=None, started_ms=0)

    def admission(self, journal: Journal) -> Admission:
        bells = Doorbells(make_app(self.server.address, self.profile))
        store = ServerPhotos(self.client)
        go_on = lambda: not self.ending.is_set()  # noqa: E731 - shorter than a method
        return Admission("s-1", self.profile, self.ledger, store, bells, journal, "bulk", go_on)

    def feed(self, source: Any, linger_ms: float = 50, rate: float = 0) -> Feed:
        with self.journal() as journal:
            pace = Pace(max_items=4, linger_ms=linger_ms, rate=rate)
            feed = Feed(source, self.admission(journal), self.profile, pace, frozenset(), self.ending)
            feed.run()
            return feed

    def positions(self) -> list[int]:
        """Positions in the first tier's ready batches, in order."""
        found = []
        for bid in self.client.zrange("{nf}:ready:first:bulk", 0, -1):
            blob = self.client.hget(b"{nf}:b:" + bid, "items")
            found += [item.position for item in decode_items(blob)]
        return found

    def admitted(self) -> int:
        return self.ledger.snapshot([]).account.get("admitted", 0)


@pytest.fixture
def line(server: EmbeddedServer, redis_client: Any, tmp_path: Path) -> Iterator[Line]:
    yield Line(server, redis_client, tmp_path)
    audit(redis_client).raise_for_problems()


def test_every_photo_once_in_order(line: Line) -> None:
    """A source ends up whole and in order in the first tier, in the journal, and its bytes in the store for good."""
    line.feed(Photos(30))
    assert line.positions() == list(range(30))
    report = read_journal(line.folder / "s-1.jsonl")
    assert report.end == 30
    assert [report.label(i) for i in range(4)] == [0, 1, 0, 1]
    assert line.client.ttl("{nf}:img:s-1:29") == -1


def test_bad_photos_go_to_the_collector(line: Line) -> None:
    """What intake refuses is admitted as a void with its reason; its neighbours go to the first tier."""
    feed = line.feed(Photos(10, bad=frozenset({2, 7})))
    assert feed.bad == 2
    assert line.positions() == [0, 1, 3, 4, 5, 6, 8, 9]
    voids = []
    for bid in line.client.zrange("{nf}:ready:collector:bulk", 0, -1):
        voids += decode_verdicts(line.client.hget(b"{nf}:b:" + bid, "items"))
    assert [(v.item.position, v.reason) for v in voids] == [(2, "not-an-image"), (7, "not-an-image")]
    assert read_journal(line.folder / "s-1.jsonl").bad == {2: "not-an-image", 7: "not-an-image"}


def test_names_travel_without_control_characters(line: Line) -> None:
    """A frame's film goes with it, cleaned and at most 200 characters long; so is its origin cleaned."""
    names = ["", "drive 7", "drive\0\n7\x1b[2J\x9b", "caf\udce9", "f" * 300]

    class Film(Photos):
        def photos(self, start: int) -> Iterator[Photo]:
            for i, name in enumerate(names[start:], start):
                yield Photo(name=str(i), data=jpeg(i), origin=name, label=1, sequence=name)

    line.feed(Film(len(names)))
    blobs = [line.client.hget(b"{nf}:b:" + bid, "items") for bid in line.client.zrange("{nf}:ready:first:bulk", 0, -1)]
    items = [item for blob in blobs for item in decode_items(blob)]
    assert [item.sequence for item in items] == ["", "drive 7", "drive 7 [2J", "caf\\xe9", "f" * 200]
    assert [item.origin for item in items] == ["", "drive 7", "drive 7 [2J", "caf\\xe9", "f" * 300]


def test_a_slow_stream_lingers_no_longer_than_asked(line: Line) -> None:
    """A batch that does not fill is closed by time, while its source still waits for the next photo."""
    source = Photos(6, pause_at=2)
    thread = threading.Thread(target=line.feed, args=(source,), kwargs={"linger_ms": 20})
    thread.start()
    deadline_s = time.monotonic() + 5
    while line.admitted() < 2 and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert line.admitted() == 2
    source.resume.set()
    thread.join(10)
    assert line.positions() == list(range(6))


def test_a_producer_that_died_goes_on_where_the_ledger_stands(line: Line) -> None:
    """A second producer of the same run admits what the first one did not."""
    line.feed(Photos(10))
    source = Photos(25)
    line.feed(source)
    assert source.starts == [10]
    assert line.positions() == list(range(25))


def test_a_death_between_admit_and_journal_is_mended(line: Line) -> None:
    """Positions that the ledger has and the journal lacks are read again and written down, not admitted again."""
    with line.journal() as journal:
        admission = line.admission(journal)
        admission.open()
        feed = Feed(Photos(10), admission, line.profile, Pace(4, 50), frozenset(), line.ending)
        entries = [feed._entry(photo, i) for i, photo in enumerate(Photos(10).photos(0))]
        admission._into_ledger(0, 10, [e.item for e in entries], [e.data for e in entries], {})
    source = Photos(14)
    line.feed(source)
    assert source.starts == [0]
    assert line.positions() == list(range(14))
    assert read_journal(line.folder / "s-1.jsonl").end == 14


def test_a_server_that_went_back_in_time_gets_the_photos_again(line: Line) -> None:
    """After a rollback the source is replayed from the ledger's offset; the journal has each position once."""
    line.feed(Photos(8))
    line.client.flushall()
    line.feed(Photos(12))
    assert line.positions() == list(range(12))
    assert read_journal(line.folder / "s-1.jsonl").end == 12


def test_a_zombie_stops(line: Line) -> None:
    """A producer whose source was opened by another one ends with a clear error."""
    with line.journal() as journal:
        admission = line.admission(journal)
        admission.open()
        line.ledger.open("s-1", "bulk")
        feed = Feed(Photos(4), admission, line.profile, Pace(4, 50), frozenset(), line.ending)
        entries = [feed._entry(photo, i) for i, photo in enumerate(Photos(4).photos(0))]
        with pytest.raises(BusyError, match="another producer"):
            admission.admit([e.item for e in entries], [e.data for e in entries], {})


def test_a_full_fleet_makes_the_producer_wait(server: EmbeddedServer, redis_client: Any, tmp_path: Path) -> None:
    """At the admission bound nothing more is admitted; when asked to end, the producer ends with what was admitted."""
    line = Line(server, redis_client, tmp_path, max_items=8)
    thread = threading.Thread(target=line.feed, args=(Photos(40),))
    thread.start()
    deadline_s = time.monotonic() + 5
    while line.admitted() < 8 and time.monotonic() < deadline_s:
        time.sleep(0.005)
    time.sleep(0.2)
    assert line.admitted() <= 16
    line.ending.set()
    thread.join(10)
    assert not thread.is_alive()
    assert read_journal(line.folder / "s-1.jsonl").end == line.admitted()
    audit(redis_client).raise_for_problems()


def test_rate_bounds_photos_a_second(line: Line) -> None:
    """Twenty photos at 100 a second take 0.19 s or more."""
    begun_s = time.monotonic()
    line.feed(Photos(20), rate=100)
    assert time.monotonic() - begun_s >= 0.19


def test_a_loop_goes_on_counting() -> None:
    """The second pass over a source has new positions and the same photos."""
    photos = Looped(Photos(3)).photos(2)
    assert [next(photos).name for _ in range(5)] == ["2", "0", "1", "2", "0"]


def test_a_rollback_after_the_last_photo_is_noticed(line: Line) -> None:
    """A producer whose server went back in time behind its back feeds again before it says that it is done."""

    class Forgetful(Photos):
        def photos(self, start: int) -> Iterator[Photo]:
            yield from super().photos(start)
            if len(self.starts) == 1:
                deadline_s = time.monotonic() + 5
                while line.admitted() < 10 and time.monotonic() < deadline_s:
                    time.sleep(0.005)
                line.client.hset("{nf}:src:s-1", "offset", 0)
                line.client.delete(*[key for key in line.client.keys("{nf}:*") if b"src:" not in key])

    source = Forgetful(10)
    line.feed(source)
    assert source.starts == [0, 0]
    assert line.positions() == list(range(10))
    assert read_journal(line.folder / "s-1.jsonl").end == 10


def test_photos_fill_half_of_the_servers_memory(line: Line) -> None:
    """The bound on stored bytes is the profile's, or half of maxmemory where that is less."""
    line.client.config_set("maxmemory", 100_000_000)
    try:
        with line.journal() as journal:
            admission = line.admission(journal)
            admission.open()
            assert admission._max_bytes == 50_000_000
    finally:
        line.client.config_set("maxmemory", 0)
