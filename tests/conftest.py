"""A real server for the whole session, and a clean ledger on it for each test."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
import structlog

from ops.server import EmbeddedServer
from routing.ledger import Ledger

if TYPE_CHECKING:
    from tests.ledgers import Clock
    from tests.test_stops import Fleet


@pytest.fixture(scope="session", autouse=True)
def _nobody_elses_server() -> Iterator[None]:
    # A user's environment must not lend a test its server or its database.
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REDIS_URL", "NATIX_FLEET_DATABASE", "NATIX_FLEET_READY_FILE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def _logs_as_at_the_start() -> Iterator[None]:
    # A command configures them for its whole process, which here is the next test's too.
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The session's own server."""
    with EmbeddedServer(tmp_path_factory.mktemp("server"), fsync="everysec") as server:
        yield server


@pytest.fixture(scope="session")
def _client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def redis_client(_client: redis.Redis) -> redis.Redis:
    """A client of the session's server, its database empty."""
    _client.flushall()
    return _client


@pytest.fixture
def clock() -> "Clock":
    """The ledger fixture's time."""
    from tests.ledgers import Clock

    return Clock()


@pytest.fixture
def ledger(redis_client: redis.Redis, clock: "Clock") -> Ledger:
    """An empty ledger whose time is the clock fixture's."""
    return Ledger(redis_client, clock_us=clock)


@pytest.fixture
def fleet(server: EmbeddedServer, redis_client: redis.Redis, tmp_path: Path) -> "Iterator[Fleet]":
    """Stops of a small fleet in this process, as a test starts them; at the end the ledger is sound."""
    from routing.audit import audit
    from tests.test_stops import Fleet
    from workers.verdicts import VerdictDatabase

    with VerdictDatabase(f"sqlite:///{tmp_path / 'v.db'}") as database:
        fleet = Fleet(server, redis_client, database)
        yield fleet
        for stop in fleet.started:
            stop.scorer.stop()
        audit(redis_client).raise_for_problems()
