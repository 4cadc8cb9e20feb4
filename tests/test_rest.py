"""A tier that rests claims nothing, rings for nothing, and goes on where it was."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from configs.profile import Profile, Tier
from configs.serving import Server
from ops.residency_control import Residency
from ops.vllm_children import Servers
from routing.ledger import Ledger
from routing.standby import PATIENCE_TICKS, Standby
from tests.ledgers import admit, joined, take, to_collector
from tests.rude_server import Reply, rude
from tests.test_stops import Fleet, photos, sure
from tests.vllm.real_server import free_port
from workers.rest import LOOK_S, Rest, is_loopback, rest_key, this_host

VLM = Profile(
    name="x", tiers=(Tier(name="vlm", model="qwen3-vl-4b-instruct", residency="sleep", server=Server(timeout_s=8)),)
)


def test_a_tier_is_told_to_rest(redis_client: redis.Redis) -> None:
    """By a key that is looked at four times a second at most; a server that is away is no server that sleeps."""
    rest = Rest(redis_client, "vlm", f"http://127.0.0.1:{free_port()}")
    assert not rest()
    redis_client.set(rest_key("vlm", this_host()), 1, px=10_000)
    assert not rest(), f"within {LOOK_S} s of the last look"
    rest._looked_s -= LOOK_S
    assert rest()
    redis_client.delete(rest_key("vlm", this_host()))
    rest._looked_s -= LOOK_S
    assert not rest()


def test_a_server_that_sleeps_stops_the_workers_of_its_own_host(redis_client: redis.Redis, tmp_path: Path) -> None:
    """Two hosts on one ledger: what sleeps on one of them is awake on the other, whose workers go on."""
    with rude(Reply(body=b'{"is_sleeping": true}')) as a, rude(Reply(body=b'{"is_sleeping": false}')) as b:
        for host, server in (("a", a), ("b", b)):
            servers = Servers(standing={"vlm": server.url})
            with Residency(VLM, servers, lambda: redis_client, tmp_path / host, host=host) as residency:
                residency._step()
                # A server that does not sleep yet, and is about to: the key alone says so.
                rest = Rest(redis_client, "vlm", b.url, host=host)
                assert rest() == (host == "a")
                rest._client.close()
    assert redis_client.keys("*rest:*") == [rest_key("vlm", "a").encode()]


def test_another_hosts_load_does_not_keep_a_server_awake(redis_client: redis.Redis, tmp_path: Path) -> None:
    """What is in hand when the workers were told is waited for, wherever; what others claim later is not."""
    ledger = Ledger(redis_client)
    ours, others, end = joined(ledger), joined(ledger), threading.Event()
    admit(ledger, "s", 400, tier="vlm")
    mine = take(ledger, ours, "vlm", 4)

    def work() -> None:
        """Of another host: it always has something in hand."""
        held = take(ledger, others, "vlm", 4)
        while not end.wait(0.2):
            held, done = take(ledger, others, "vlm", 4), held
            to_collector(ledger, others, done)

    busy = threading.Thread(target=work)
    slow = threading.Timer(2.0, lambda: to_collector(ledger, ours, mine))
    with (
        rude(Reply(body=b'{"is_sleeping": false}')) as server,
        Residency(VLM, Servers(standing={"vlm": server.url}), lambda: redis_client, tmp_path) as residency,
    ):
        busy.start()
        slow.start()
        begun_s = time.monotonic()
        try:
            residency._quiet(residency._tiers["vlm"])
            took_s = time.monotonic() - begun_s
        finally:
            end.set()
            busy.join()
            slow.join()
    assert 1.9 <= took_s < 4


def test_a_host_has_one_name() -> None:
    """For all of its processes."""
    program = "from workers.rest import this_host; print(this_host())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == this_host()


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
