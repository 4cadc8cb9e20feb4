"""A pickled message runs code where it is read: nobody here reads one, and whoever sends it stops nobody."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Exchange

from ops.server import EmbeddedServer
from routing.address import ServerAddress
from tests.small_fleet import FIRST, SmallFleet

REFUSED = "Refusing to deserialize untrusted content of type pickle"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


def send(address: ServerAddress, body: object, exchange: Exchange, key: str) -> None:
    """What an attacker sends who can write to the broker: pickled by kombu itself, headed like a task of ours."""
    headers = {"task": f"serve.{FIRST}", "id": "1", "lang": "py", "argsrepr": "()", "kwargsrepr": "{}"}
    with Connection(address.broker_url) as connection, connection.channel() as channel:  # type: ignore[no-untyped-call]
        connection.Producer(channel).publish(
            body,
            exchange=exchange,
            routing_key=key,
            serializer="pickle",
            headers=headers,
            declare=[exchange] if exchange.name else [],
        )


@pytest.fixture(scope="module")
def fleet(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallFleet]:
    with server.address.connect() as client:
        client.flushall()
    with SmallFleet(tmp_path_factory.mktemp("fleet"), server) as fleet:
        yield fleet


@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        (Exchange(""), f"natix-fleet.{FIRST}"),  # type: ignore[no-untyped-call]
        (Exchange("celery.pidbox", type="fanout"), ""),  # type: ignore[no-untyped-call]
    ],
    ids=["doorbell", "remote control"],
)
def test_a_pickle_is_refused(fleet: SmallFleet, tmp_path: Path, exchange: Exchange, key: str) -> None:
    """Sent as a doorbell or as remote control it is never unpickled, the log says so, and the worker goes on."""
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Payload(made)))  # noqa: S301 - it would run
    assert made.exists()
    made.unlink()
    pid, refused = fleet.pid(FIRST), fleet.log(FIRST).count(REFUSED)
    for body in (Payload(made), [[Payload(made)], {}, {}], {"method": "ping", "arguments": Payload(made)}):
        send(fleet.server.address, body, exchange, key)
    fleet.until(lambda: fleet.log(FIRST).count(REFUSED) >= refused + 3)
    fleet.feed(f"after-{key or 'control'}", 40)
    fleet.until(fleet.done)
    assert not made.exists()
    assert fleet.pid(FIRST) == pid
    assert fleet.account().balanced
