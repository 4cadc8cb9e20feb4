"""LMCache's children: what a profile asks for, and a Valkey that gives way instead of refusing. No vLLM is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from configs.errors import BusyError, ConfigError
from configs.profile import Profile, Tier
from configs.serving import Server
from ops import lmcache
from ops.child import Backoff
from ops.lmcache import BLOCKS, BLOCKS_VARIABLE, CACHE, blocks_child, lmcache_children
from ops.supervisor import POLL_INTERVAL_S, Supervisor
from routing.address import ServerAddress, parse_address
from tests.small_vlm import small_vlm
from tests.vllm.real_server import free_port

LEDGER = parse_address("redis://:ledger-Znq@127.0.0.1:6379/0")
VLM = "qwen3-vl-4b-instruct"


@pytest.fixture(autouse=True)
def _free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on this machine."""
    monkeypatch.setattr(lmcache, "PORT", free_port())
    monkeypatch.setattr(lmcache, "HTTP_PORT", free_port())


def profile(*servers: Server) -> Profile:
    """A tier for each server."""
    return Profile(
        name="cached", tiers=tuple(Tier(name=f"vlm-{i}", model=VLM, server=one) for i, one in enumerate(servers))
    )


def cached(block_size: int = 32) -> Server:
    """One that keeps its blocks."""
    return Server(lmcache=True, block_size=block_size)


def test_nobody_asks_nothing_starts(tmp_path: Path) -> None:
    """Nor for a tier whose server somebody else runs."""
    elsewhere = Server(lmcache=True, url="http://10.0.0.7:8000")
    assert lmcache_children(profile(Server(), elsewhere), sys.executable, tmp_path, LEDGER) == []
    assert not list(tmp_path.iterdir())


def test_one_process_serves_all_tiers_in_chunks_of_their_blocks(tmp_path: Path) -> None:
    """A chunk is whole blocks of each tier; LMCache waits for its Valkey; no argument holds a password."""
    valkey, cache = lmcache_children(profile(cached(16), Server(), cached(48)), "python", tmp_path, LEDGER, environ={})
    assert (valkey.name, cache.name, cache.after) == (BLOCKS, CACHE, (BLOCKS,))
    assert cache.argv[list(cache.argv).index("--chunk-size") + 1] == "48"
    password = cache.env["LMCACHE_RESP_PASSWORD"]
    assert len(password) == 48
    assert password not in repr((valkey, cache))
    assert (tmp_path / f"{BLOCKS}.conf").stat().st_mode & 0o777 == 0o600
    assert password not in (tmp_path / f"{BLOCKS}.conf").read_text()


def test_blocks_on_a_server_that_somebody_else_runs(tmp_path: Path) -> None:
    """Its login goes by the environment, and no Valkey is started."""
    environ = {BLOCKS_VARIABLE: "redis://kv:s3cret-Znq@10.0.0.9:6380/0"}
    (cache,) = lmcache_children(profile(cached()), sys.executable, tmp_path, LEDGER, environ=environ)
    adapter = json.loads(cache.argv[list(cache.argv).index("--l2-adapter") + 1])
    assert adapter == {"type": "resp", "host": "10.0.0.9", "port": 6380}
    assert (cache.env["LMCACHE_RESP_USERNAME"], cache.env["LMCACHE_RESP_PASSWORD"]) == ("kv", "s3cret-Znq")
    assert "s3cret-Znq" not in repr(cache)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:x@127.0.0.1:6379/0", "the ledger's server"),
        ("redis://:x@localhost:6379/0", "the ledger's server"),
        ("redis://:x@LOCALHOST", "the ledger's server"),
        ("redis://:x@10.0.0.9:6379/3", "database 0 only"),
        ("rediss://:x@10.0.0.9:6379/0", "redis:// and database 0 only"),
        ("http://10.0.0.9", "it must start with"),
    ],
)
def test_a_server_that_cannot_hold_blocks_is_refused(tmp_path: Path, url: str, said: str) -> None:
    """The ledger's above all."""
    with pytest.raises(ConfigError, match=said):
        lmcache_children(profile(cached()), sys.executable, tmp_path, LEDGER, environ={BLOCKS_VARIABLE: url})


@pytest.mark.parametrize("name", ["PORT", "HTTP_PORT"])
def test_a_port_that_somebody_else_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A stranger's 200 is not LMCache's: its blocks may be of other lengths. Nothing is begun."""
    with small_vlm(VLM) as url:
        port = int(url.rpartition(":")[2])
        monkeypatch.setattr(lmcache, name, port)
        with pytest.raises(BusyError, match=f"port {port} .*is taken.*end that, or .*lmcache"):
            lmcache_children(profile(cached()), sys.executable, tmp_path, LEDGER, environ={})
    assert not list(tmp_path.iterdir())


def until_ready(supervisor: Supervisor) -> None:
    """Polls it."""
    until_s = time.monotonic() + 30
    while not supervisor.all_ready:
        supervisor.poll()
        assert time.monotonic() < until_s
        time.sleep(POLL_INTERVAL_S)


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[ServerAddress]:
    """A real Valkey of 8 MiB."""
    child, address = blocks_child(tmp_path, 8 << 20)
    with Supervisor([child]) as supervisor:
        until_ready(supervisor)
        yield address


def test_a_full_valkey_gives_way(blocks: ServerAddress) -> None:
    """Three times its memory is written and nothing refused; what came last is there.

    Which of the others are gone is chance: its clock for that ticks once a second.
    """
    with blocks.connect() as client:
        for i in range(384):
            client.set(f"model@0@0@{i:04x}", bytes(65536))
        assert 0 < client.dbsize() < 128
        assert client.exists("model@0@0@017f")


@pytest.mark.parametrize("command", ["FLUSHALL", "KEYS *", "CONFIG GET maxmemory", "EVAL return 0"])
def test_its_user_may_do_no_more_than_it_needs(blocks: ServerAddress, command: str) -> None:
    """What LMCache never sends is not allowed; and nobody comes in without the password."""
    with blocks.connect() as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())
    ((host, port),) = blocks.hosts
    with (
        redis.Redis(host, port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        stranger.get("model@0@0@0000")


def guarded(blocks: ServerAddress, *command: str) -> subprocess.Popen[str]:
    """Any command in LMCache's place."""
    ((host, port),) = blocks.hosts
    login = {"LMCACHE_RESP_USERNAME": blocks.username or "", "LMCACHE_RESP_PASSWORD": blocks.password or ""}
    return subprocess.Popen(
        [sys.executable, "-m", "ops.lmcache_process", host, str(port), *command],
        env=os.environ | login,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_lmcache_ends_with_its_valkey(tmp_path: Path) -> None:
    """By SIGTERM well, by itself not well, and as if its server were away when its Valkey died, back already or not."""
    child, address = blocks_child(tmp_path, 8 << 20)
    sleeps = [sys.executable, "-c", "import sys, time; print(sys.argv[1:], flush=True); time.sleep(40)", "--port", "1"]
    with Supervisor([child], Backoff(base_s=0.001)) as supervisor:
        until_ready(supervisor)
        with guarded(address, *sleeps) as asked:
            assert asked.stdout
            assert asked.stdout.readline() == "['--port', '1']\n"
            asked.terminate()
            assert asked.wait(30) == 0
        with guarded(address, sys.executable, "-c", "raise SystemExit(3)") as ended:
            assert ended.wait(30) == 70
        with guarded(address, *sleeps) as left:
            assert left.stdout
            left.stdout.readline()
            pid = supervisor.states[0].pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            while supervisor.states[0].pid in {pid, None} or not supervisor.all_ready:
                supervisor.poll()
            _, said = left.communicate(timeout=30)
            assert (left.returncode, "is away" in said) == (69, True)
    with guarded(address, *sleeps) as never:
        assert never.wait(30) == 69
