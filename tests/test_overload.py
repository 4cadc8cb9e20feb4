"""Overload: a producer ten times as fast as its fleet, on a server with little memory."""

import threading
from pathlib import Path

import msgspec
import pytest
import redis
from structlog.testing import capture_logs

from ops.server import EmbeddedServer
from producers.admission import Admission
from producers.journal import Journal
from routing.audit import audit
from routing.broker import Doorbells, make_app
from routing.patience import passing
from routing.store import ServerPhotos
from tests.small_fleet import FIRST, Faults, SmallFleet, references, small_profile

MEMORY_BYTES = 20_000_000
PHOTO = bytes(20_000)
#: 64 photos in 0.2 s; admission takes ten times as many.
SLOW = {FIRST: Faults(slow_s=0.2)}
COUNT = 1600


@pytest.mark.faults
def test_a_fast_producer_waits(tmp_path: Path) -> None:
    """The server's memory stays under its bound, the producer waits and says so, nothing is evicted or lost."""
    profile = small_profile()
    with (
        EmbeddedServer(tmp_path / "server", fsync="everysec", maxmemory_bytes=MEMORY_BYTES) as server,
        SmallFleet(tmp_path, server, profile, SLOW) as fleet,
        Journal.create(tmp_path / "j", "s", profile=profile.digest(), spec="", limit=None, started_ms=0) as journal,
    ):
        fleet.journals.append(journal)
        doorbells = Doorbells(make_app(server.address, profile))
        admission = Admission("s", profile, fleet.ledger, ServerPhotos(fleet.client), doorbells, journal, "bulk")

        def produce() -> None:
            admission.open()
            for start in range(0, COUNT, 64):
                items = references("s", start, min(start + 64, COUNT))
                items = [msgspec.structs.replace(item, stored_bytes=len(PHOTO)) for item in items]
                admission.admit(items, [PHOTO] * len(items), {})
            admission.close()

        producer = threading.Thread(target=produce, daemon=True)
        used: list[int] = []

        def finished() -> bool:
            used.append(int(fleet.client.info("memory")["used_memory"]))
            return not producer.is_alive() and fleet.done()

        with capture_logs() as logs:
            producer.start()
            fleet.until(finished)
        assert COUNT * len(PHOTO) > 1.5 * MEMORY_BYTES
        assert max(used) < MEMORY_BYTES
        assert admission.waited_s > 2
        assert any(entry["event"] == "the fleet is full, waiting" for entry in logs)
        assert not any(entry["event"] == "waiting" for entry in logs), "the server refused what admission let in"
        assert fleet.client.info("stats")["evicted_keys"] == 0
        account = fleet.account()
        assert account.balanced, account.problems
        assert account.admitted == COUNT
        audit(fleet.client).raise_for_problems()


def test_a_refused_pipeline_passes_too(tmp_path: Path) -> None:
    """A master without the replicas that it wants refuses a pipeline; its word is not at the head of the error."""
    with EmbeddedServer(tmp_path, fsync="everysec") as server, server.address.connect() as client:
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.RedisError, match="NOREPLICAS") as refused:
            ServerPhotos(client).put("s", [(0, b"x")])
        assert passing(refused.value)
