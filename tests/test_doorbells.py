"""Doorbells over a real broker: what counting them costs, and that it outlives its connection."""

import gc
from pathlib import Path

import redis

from ops.server import EmbeddedServer
from routing.broker import Doorbells, make_app, queue_name
from tests.small_fleet import FIRST, SECOND, small_profile


def test_counting_leaves_nothing_behind(server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """A fleet counts every second for months: a count leaves no object for the garbage collector."""
    assert redis_client.ping()
    doorbells = Doorbells(make_app(server.address, small_profile()))
    doorbells.ring([FIRST, FIRST])
    assert doorbells.waiting([FIRST, SECOND]) == {FIRST: 2, SECOND: 0}
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            doorbells.waiting([FIRST, SECOND])
        assert gc.collect() < 50
    finally:
        gc.enable()


def test_counting_outlives_the_server(tmp_path: Path) -> None:
    """While the server is away a count says so; once it is back, the next one has its answer."""
    with EmbeddedServer(tmp_path / "server") as server:
        doorbells = Doorbells(make_app(server.address, small_profile()))
        doorbells.ring([FIRST])
        assert doorbells.waiting([FIRST]) == {FIRST: 1}
        server.kill()
        assert doorbells.waiting([FIRST]) is None
        assert doorbells.waiting([FIRST]) is None
        server.start()
        assert doorbells.waiting([FIRST]) == {FIRST: 1}


def test_a_count_that_is_refused_is_not_nothing(server: EmbeddedServer, redis_client: redis.Redis) -> None:
    """What the broker refuses to count is unknown, not empty, or more would be rung each second without a bound."""
    doorbells = Doorbells(make_app(server.address, small_profile()))
    assert doorbells.waiting([FIRST]) == {FIRST: 0}
    redis_client.set(queue_name(FIRST), "no list")
    assert doorbells.waiting([FIRST]) is None
