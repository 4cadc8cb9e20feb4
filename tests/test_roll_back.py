"""A server that comes back with an earlier moment: what it forgot is fed again, and nothing counts twice."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog

from ops.server import EmbeddedServer
from producers.admission import Admission
from producers.journal import Journal
from routing.audit import audit
from routing.broker import Doorbells, make_app
from routing.refusals import Misplaced
from routing.store import ServerPhotos
from tests.small_fleet import SmallFleet, references
from workers.verdicts import VerdictDatabase

log = structlog.get_logger()

SOURCE = "s"
STEP = 64


class Producer:
    """A source that can replay, fed from wherever the ledger stands."""

    def __init__(self, fleet: SmallFleet) -> None:
        journal = Journal.create(
            fleet.folder / "journal", SOURCE, profile=fleet.profile.digest(), spec="", limit=None, started_ms=0
        )
        fleet.journals.append(journal)
        doorbells = Doorbells(make_app(fleet.server.address, fleet.profile))
        store = ServerPhotos(fleet.client)
        self.admission = Admission(SOURCE, fleet.profile, fleet.ledger, store, doorbells, journal, "bulk")
        self.position = self.admission.open()
        #: Positions that were acknowledged and asked for again.
        self.fed_again = 0

    def feed_to(self, end: int) -> None:
        """Admits up to ``end``, going back with the server."""
        while self.position < end:
            to = min(self.position + STEP, end)
            # Where the journal ends a batch ends: what lies before was admitted once already.
            if self.position < self.admission.journal.end < to:
                to = self.admission.journal.end
            try:
                self.admission.admit(references(SOURCE, self.position, to), [], {})
            except Misplaced as misplaced:
                back = min(misplaced.offset, self.admission.journal.end)
                self.fed_again += self.position - back
                self.position = back
            else:
                self.position = to

    def close_at(self, end: int) -> None:
        """Feeds until the source may be closed at its end: a server that went back asks for more."""
        while True:
            self.feed_to(end)
            try:
                self.admission.close()
            except Misplaced as misplaced:
                self.fed_again += self.position - misplaced.offset
                self.position = misplaced.offset
            else:
                return


@contextmanager
def fleet_of_its_own(folder: Path) -> Iterator[SmallFleet]:
    """A fleet on a server that the test may end."""
    (folder / "fleet").mkdir()
    with EmbeddedServer(folder / "server", fsync="everysec") as server, SmallFleet(folder / "fleet", server) as fleet:
        yield fleet


def generations(fleet: SmallFleet) -> dict[int, int]:
    """The rows' generations by position."""
    with VerdictDatabase(fleet.database_url, create=False) as database:
        rows = {position: database.row(SOURCE, position) for position in database.ids(SOURCE)}
    return {position: int(row["gen"]) for position, row in rows.items() if row}


def in_order(fleet: SmallFleet) -> bool:
    """Each window is what its last positions say, in order."""
    return all(
        (positions := [int(id_.rpartition(":")[2]) for id_ in fleet.ledger.ring(scope)]) == sorted(set(positions))
        for scope in fleet.ledger.scopes()
    )


def test_an_exact_roll_back_is_fed_again(tmp_path: Path) -> None:
    """Expects positions that the server forgot to be judged anew: no row of an older generation, all accounts even."""
    with fleet_of_its_own(tmp_path) as fleet:
        server, producer = fleet.server, Producer(fleet)
        producer.feed_to(300)
        client: Any = fleet.client
        # On the disk: what the server answers to from now on may be lost.
        assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1
        shutil.copytree(server.folder / "appendonlydir", tmp_path / "earlier")
        offset = int(client.hget("{nf}:src:" + SOURCE, "offset"))
        producer.feed_to(1200)
        fleet.until(lambda: fleet.done() and len(generations(fleet)) == 1200)
        before = generations(fleet)

        server.kill()
        shutil.rmtree(server.folder / "appendonlydir")
        shutil.copytree(tmp_path / "earlier", server.folder / "appendonlydir")
        server.start()
        assert int(client.hget("{nf}:src:" + SOURCE, "offset")) == offset == 300
        producer.close_at(1500)
        fleet.until(fleet.done)
        account, after = fleet.account(), generations(fleet)
        assert in_order(fleet)
        assert fleet.ledger.ring("all")[-1] == f"{SOURCE}:1499"
        audit(fleet.client).raise_for_problems()
    assert producer.fed_again == 900
    assert account.balanced, account.problems
    assert (account.admitted, account.verdicts, account.lost, account.counted_twice) == (1500, 1500, 0, 0)
    assert all(after[position] >= gen for position, gen in before.items())
    assert all(after[position] > before[position] for position in range(300, 1200))


_BUSY_DISK = """
import os, sys
block = os.urandom(1 << 22)
with open(sys.argv[1], "wb") as file:
    while True:
        file.seek(0)
        for _ in range(16):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
"""


@pytest.mark.slow
def test_acknowledged_writes_that_a_kill_loses_are_made_again(tmp_path: Path) -> None:
    """Expects a server killed under everysec on a busy disk to lose what it had acknowledged, and the fleet nothing."""
    lost_writes: list[int] = []
    with fleet_of_its_own(tmp_path) as fleet:
        server, producer = fleet.server, Producer(fleet)
        end, ending = 0, threading.Event()
        acknowledged = [0]

        def write() -> None:
            with server.address.connect() as client:
                while not ending.is_set():
                    try:
                        acknowledged[0] = int(client.incr("counter"))
                    except redis.RedisError:
                        return

        busy = [
            subprocess.Popen([sys.executable, "-c", _BUSY_DISK, str(server.folder / f"busy-{i}")]) for i in range(2)
        ]
        try:
            for _ in range(12):
                writer = threading.Thread(target=write)
                writer.start()
                fed = threading.Thread(target=producer.feed_to, args=(end := end + 5000,))
                fed.start()
                with server.address.connect() as watch:
                    give_up_s = time.monotonic() + 8
                    while time.monotonic() < give_up_s:
                        persistence: Any = watch.info("persistence")
                        if persistence["aof_pending_bio_fsync"] and persistence["aof_buffer_length"] > 1000:
                            break
                server.kill()
                ending.set()
                writer.join()
                ending.clear()
                told = acknowledged[0]
                server.start()
                lost_writes.append(told - int(fleet.client.get("counter") or 0))
                acknowledged[0] = int(fleet.client.get("counter") or 0)
                fed.join()
                if lost_writes[-1] > 0 and producer.fed_again:
                    break
        finally:
            for process in busy:
                process.kill()
                process.wait()
        log.info("acknowledged writes lost", by_kill=lost_writes, positions_fed_again=producer.fed_again)
        producer.close_at(end)
        fleet.until(fleet.done, within_s=120)
        account = fleet.account()
        audit(fleet.client).raise_for_problems()
        assert in_order(fleet)
    assert max(lost_writes) > 0, "no kill lost a write: the disk was too fast"
    assert account.balanced, account.problems
    assert (account.admitted, account.lost, account.counted_twice) == (end, 0, 0)
