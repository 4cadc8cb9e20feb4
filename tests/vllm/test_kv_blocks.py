"""LMCache on this machine: a real vLLM, a real LMCache, a real Valkey for its blocks."""

import base64
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from configs.profile import Tier
from configs.serving import Server
from ops.child import Backoff
from ops.lmcache import CACHE, ENVIRONMENT, Sizes, blocks_child, kv_transfer_config, lmcache_child
from ops.supervisor import POLL_INTERVAL_S, Supervisor
from routing.address import ServerAddress
from tests.vllm.conftest import NAME
from tests.vllm.real_server import free_port, real_server

BLOCK = 32
SMALL = Sizes(near_bytes=1 << 28, far_bytes=1 << 28)
#: A reply of LMCache that does not come is given up after 3 s, up to three of them in a row.
BOUND_S = 20.0


def say(line: str) -> None:
    """Into the captured output: pytest -s shows the figures."""
    sys.stdout.write(f"{line}\n")


def photo_file(seed: int) -> Image.Image:
    """A photo of noise, 448 px: 196 image tokens of this model."""
    pixels = Image.frombytes("RGB", (14, 14), bytes((seed * 89 + i * 37) % 256 for i in range(14 * 14 * 3)))
    return pixels.resize((448, 448))


def photo(seed: int) -> str:
    """The same as a data URL."""
    out = io.BytesIO()
    photo_file(seed).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def ask(url: str, seed: int, question: str = "Is there roadwork in this photo? yes or no") -> tuple[int, int, float]:
    """Tokens of the prompt, how many of them were found, seconds."""
    begun_s = time.monotonic()
    content = [{"type": "image_url", "image_url": {"url": photo(seed)}}, {"type": "text", "text": question}]
    body = {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    took_s = time.monotonic() - begun_s
    assert reply.status_code == 200, reply.text
    usage = reply.json()["usage"]
    return usage["prompt_tokens"], (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0, took_s


class Beside:
    """LMCache and its Valkey under a supervisor."""

    def __init__(self, python: str, folder: Path) -> None:
        self.port, self.http_port = free_port(), free_port()
        valkey, self.blocks = blocks_child(folder, SMALL.far_bytes)
        tier = Tier(name="vlm", model=NAME, server=Server(lmcache=True, block_size=BLOCK))
        cache = lmcache_child(
            (tier,), python, self.blocks, folder, SMALL, port=self.port, http_port=self.http_port, after=(valkey.name,)
        )
        self.log = folder / f"{CACHE}.log"
        self.supervisor = Supervisor([valkey, cache], Backoff(base_s=0.1))

    def until(self, true: Callable[[], bool], within_s: float = 60) -> float:
        """Seconds until it was so; polls the supervisor."""
        begun_s = time.monotonic()
        while True:
            self.supervisor.poll()
            if true():
                return time.monotonic() - begun_s
            assert time.monotonic() < begun_s + within_s, self.log.read_text()[-4000:]
            time.sleep(POLL_INTERVAL_S)

    def ready(self) -> bool:
        return self.supervisor.all_ready

    def pid(self, name: str) -> int | None:
        return next(state.pid for state in self.supervisor.states if state.name == name)

    def kill(self, name: str) -> None:
        """SIGKILL; nobody starts it again before the next ``until``."""
        pid = self.pid(name)
        assert pid
        os.killpg(pid, signal.SIGKILL)

    def counted(self, name: str) -> float:
        """One of LMCache's own counters."""
        text = httpx2.get(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def keys(self) -> int:
        with self.blocks.connect() as client:
            return int(client.dbsize())


@pytest.fixture
def beside(python: str, tmp_path: Path) -> Iterator[Beside]:
    one = Beside(python, tmp_path / "kv")
    with one.supervisor:
        say(f"LMCache ready after {one.until(one.ready):.1f} s")
        yield one


@contextmanager
def server(python: str, tiny: Path, log: Path, port: int) -> Iterator[str]:
    """vLLM whose own prefix cache is off, so that what it finds is LMCache's."""
    # Photos as they are: the tiny model's own bounds would leave no whole block of them.
    size = {"size": {"shortest_edge": 4096, "longest_edge": 448 * 448}}
    arguments = ["--no-enable-prefix-caching", "--enable-prompt-tokens-details"]
    arguments += ["--mm-processor-kwargs", json.dumps(size)]
    arguments += ["--kv-transfer-config", json.dumps(kv_transfer_config(port))]
    with real_server(python, tiny, NAME, log, arguments=arguments, env=ENVIRONMENT) as url:
        yield url


def test_blocks_outlive_both_processes(python: str, tiny: Path, beside: Beside, tmp_path: Path) -> None:
    """The same photo is found again in LMCache; after a restart of vLLM and LMCache, in the Valkey; without it, not."""
    with server(python, tiny, tmp_path / "vllm-1.log", beside.port) as url:
        ask(url, 1)
        length, found, cold_s = ask(url, 2)
        assert found < BLOCK
        beside.until(lambda: beside.keys() > 0)
        again = [ask(url, 2) for _ in range(5)]
        whole = (length - 1) // BLOCK * BLOCK
        assert {found for _, found, _ in again} == {whole}
        _, other, _ = ask(url, 2, "Is anything else in this photo?")
        warm_s = [round(took_s, 2) for _, _, took_s in again]
        say(f"{length} tokens: {whole} found, another question: {other}; {cold_s:.2f} s, then {warm_s} s")
        assert BLOCK <= other < whole
        assert beside.counted("lmcache_mp_lookup_hit_l1_tokens_total") > 0

    beside.kill(CACHE)
    beside.until(lambda: not beside.ready())
    say(f"LMCache again after {beside.until(beside.ready):.1f} s, {beside.keys()} blocks in the Valkey")
    with server(python, tiny, tmp_path / "vllm-2.log", beside.port) as url:
        # A new photo first: on a processor with AMX, vLLM 0.32.0 without its warm-up (--enforce-eager) dies of an
        # illegal instruction if its first step is one token, before a large product asked the kernel for AMX's tiles.
        assert ask(url, 3)[1] < BLOCK
        assert beside.counted("lmcache_mp_lookup_hit_l2_tokens_total") == 0
        _, found, took_s = ask(url, 2)
        say(f"a photo of the last server, asked of the new one: {found} found in {took_s:.3f} s")
        assert found == whole
        assert beside.counted("lmcache_mp_lookup_hit_l2_tokens_total") >= whole

        beside.kill(CACHE)
        times = [ask(url, 10 + i)[2] for i in range(6)]
        say(f"without LMCache: {[round(s, 2) for s in times]} s")
        assert max(times) < BOUND_S
        beside.until(lambda: not beside.ready())
        beside.until(beside.ready)
        ask(url, 30)
        say(f"found once it is back: {beside.until(lambda: ask(url, 30)[1] == whole):.1f} s")

        beside.kill("kv-blocks")
        times = [ask(url, 40 + i)[2] for i in range(6)]
        say(f"without the Valkey: {[round(s, 2) for s in times]} s")
        assert max(times) < BOUND_S
        # It ends with its Valkey, and comes back with it: by itself it would never connect again.
        first = beside.pid(CACHE)
        beside.until(lambda: beside.pid(CACHE) not in {first, None})
        beside.until(beside.ready)
        more = count(50)

        def stored() -> bool:
            # Of what vLLM computes before it has met the new LMCache nothing is kept.
            ask(url, next(more))
            return beside.keys() > 0

        say(f"blocks in the new Valkey: {beside.until(stored):.1f} s")


def test_the_password_is_in_no_argument_and_no_log(beside: Beside) -> None:
    """Nobody who lists processes or reads the logs learns it, and without it the blocks are out of reach."""
    password = beside.blocks.password
    assert password
    for name in (CACHE, "kv-blocks"):
        pid = beside.pid(name)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *children):
            assert password not in Path(f"/proc/{process}/cmdline").read_text()
    for path in beside.log.parent.iterdir():
        assert password not in path.read_text()
    stranger = ServerAddress(url="", scheme="redis", hosts=beside.blocks.hosts)
    with stranger.connect(retry=None) as client, pytest.raises(Exception, match=r"NOAUTH|Authentication"):
        client.get("x")
    with beside.blocks.connect() as client, pytest.raises(Exception, match="no permissions"):
        client.flushall()
