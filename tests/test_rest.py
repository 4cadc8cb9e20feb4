"""A tier that rests claims nothing, rings for nothing, and goes on where it was."""

import pytest
import redis

from routing.standby import PATIENCE_TICKS, Standby
from tests.test_stops import Fleet, photos, sure
from tests.vllm.real_server import free_port
from workers.rest import LOOK_S, Rest, is_loopback, rest_key


def test_a_tier_is_told_to_rest(redis_client: redis.Redis) -> None:
    """By a key that is looked at four times a second at most; a server that is away is no server that sleeps."""
    rest = Rest(redis_client, "vlm", f"http://127.0.0.1:{free_port()}")
    assert not rest()
    redis_client.set(rest_key("vlm"), 1, px=10_000)
    assert not rest(), f"within {LOOK_S} s of the last look"
    rest._looked_s -= LOOK_S
    assert rest()
    redis_client.delete(rest_key("vlm"))
    rest._looked_s -= LOOK_S
    assert not rest()


def test_what_waits_for_a_tier_that_rests_waits(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a doorbell nor the standby takes it; afterwards it is served as ever."""
    fleet.admit(photos(8))
    stop = fleet.tier("first", sure)
    served: list[int] = []

    def serve() -> int:
        served.append(stop.serve())
        return served[-1]

    standby = fleet.owner.standby = Standby("first", serve, lambda: stop.rests())  # noqa: PLW0108 - set anew below
    stop.rests = lambda: True
    for _ in range(3 * PATIENCE_TICKS):
        standby.tick(8, busy=False)
    assert stop.serve() == 0
    assert served == [], "the standby knows that it is by choice"
    assert fleet.ledger.snapshot(["first"]).use["ready:first"] == 8
    assert stop._serve_live()[0] == 0
    assert "no doorbell" not in capsys.readouterr().out
    stop.rests = lambda: False
    standby.tick(8, busy=False)
    standby.end()
    assert served[0] == 1, "woken, it goes on at the first tick: nobody rings for it"
    assert "no doorbell" not in capsys.readouterr().out
    fleet.owner.standby = None


def test_only_this_machine_is_loopback() -> None:
    """Dev endpoints are asked nowhere else."""
    assert all(
        map(is_loopback, ("http://127.0.0.1:8100", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9:1"))
    )
    assert not any(map(is_loopback, ("http://10.0.0.1:8100", "http://gpu-box:1", "http://127.example.com:1", "")))
