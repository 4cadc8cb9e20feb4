"""A failover under load: the master dies, a replica takes over, and the fleet follows through its sentinels."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import redis
from msgspec import Struct

from ops.server import EmbeddedServer
from producers.admission import Admission
from producers.feed import Feed, Pace
from producers.journal import Journal
from routing.address import ServerAddress, parse_address
from routing.audit import audit
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.store import ServerPhotos
from tests.small_fleet import SmallFleet
from tests.test_address import _knows_all, _port_of, free_port, sentinels, until
from tests.test_feed import Photos
from tests.test_outages import BUSY, SLOW, hears_doorbells, watch


class Group(Struct):
    """A master, its replica, and the address of the sentinels that watch them."""

    master: EmbeddedServer
    replica: EmbeddedServer
    address: ServerAddress


@contextmanager
def group(folder: Path) -> Iterator[Group]:
    """Two servers and three sentinels, all of one mind."""
    with ExitStack() as stack:
        master = stack.enter_context(EmbeddedServer(folder / "a", fsync="everysec"))
        replica = stack.enter_context(EmbeddedServer(folder / "b", fsync="everysec"))
        password = str(master.address.password)
        with replica.address.connect() as follows, master.address.connect() as leads:
            for client in (follows, leads):
                client.config_set("masterauth", password)
                client.config_set("repl-diskless-sync-delay", 0)
            follows.config_set("requirepass", password)
            follows.replicaof("127.0.0.1", str(master.port))
            until(lambda: leads.info("replication").get("slave0", {}).get("state") == "online")
        ports = stack.enter_context(sentinels(folder, master.address, "sentry"))
        where = ",".join(f"127.0.0.1:{port}" for port in ports)
        for port in ports:
            with redis.Redis(port=port, password="sentry") as sentinel:  # noqa: S106
                until(partial(_knows_all, sentinel))
        url = f"sentinel://:{password}@{where}/0?master_name=fleet&sentinel_password=sentry"
        yield Group(master, replica, parse_address(url))


def cut_off(servers: Group) -> None:
    """The replica follows no more; the sentinels do not mind at once."""
    with redis.Redis(port=servers.replica.port, password=servers.master.address.password) as follows:
        follows.replicaof("127.0.0.1", str(free_port()))


class Producer(threading.Thread):
    """A producer of a source that can replay: it goes back to the ledger's offset."""

    def __init__(self, fleet: SmallFleet, address: ServerAddress, source: str, count: int) -> None:
        super().__init__(daemon=True)
        self.ending = threading.Event()
        journal = Journal.create(
            fleet.folder / "journal", source, profile=BUSY.digest(), spec="test", limit=None, started_ms=0
        )
        fleet.journals.append(journal)
        client = address.connect()
        #: Its last photos come once it is told to resume, so that it outlives whatever happens before.
        self.photos = Photos(count, pause_at=count - 100)
        self.feed = Feed(
            self.photos,
            Admission(
                source,
                BUSY,
                Ledger(client),
                ServerPhotos(client),
                Doorbells(make_app(address, BUSY)),
                journal,
                "bulk",
            ),
            BUSY,
            Pace(max_items=16, linger_ms=10),
            frozenset(),
            self.ending,
        )
        self.start()

    def run(self) -> None:
        self.feed.run()


@pytest.mark.faults
def test_the_fleet_follows_its_master(tmp_path: Path) -> None:
    """Killed under load, its replica a second behind: all that a source which can replay admits ends exactly once."""
    with group(tmp_path) as servers:
        fleet = SmallFleet(tmp_path, servers.master, BUSY, SLOW, url=servers.address.url)
        fleet.client = servers.address.connect()
        fleet.ledger = Ledger(fleet.client)
        with fleet:
            producer = Producer(fleet, servers.address, "s", 3000)
            fleet.until(lambda: fleet.ledger.snapshot([]).account.get("verdicts", 0) > 300)
            cut_off(servers)
            watch(fleet, 1.0)
            servers.master.kill()
            fleet.until(lambda: _port_of(fleet.client) == servers.replica.port)
            assert producer.is_alive()
            producer.photos.resume.set()
            fleet.until(lambda: not producer.is_alive() and fleet.done())
            hears_doorbells(fleet, servers.address, "after")
            account = fleet.account()
            assert account.balanced, account.problems
            assert account.admitted == 3500
            assert len(producer.photos.starts) > 1, "it never went back: nothing was missing"
            audit(fleet.client).raise_for_problems()
