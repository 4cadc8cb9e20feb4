"""The servers of VLM tiers as a fleet has them: started, used, killed, put to sleep; real vLLMs on this processor."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
import pytest
import redis
import structlog
from PIL import Image

from configs.errors import BusyError
from configs.profile import Profile, Tier
from configs.serving import Server
from ops.fleet import server_children
from ops.lock import holder
from ops.residency_control import Residency
from ops.supervisor import POLL_INTERVAL_S, Supervisor
from ops.vllm_children import Servers, find_servers
from ops.wakes import read_wakes
from routing.ledger import Ledger
from tests.ledgers import admit, joined, take, to_collector
from tests.test_supervisor import alive
from tests.vllm.conftest import NAME
from tests.vllm.real_server import START_S, free_port
from workers.rest import Rest

if TYPE_CHECKING:
    from ops.child import Event

log = structlog.get_logger(__name__)

PROFILE = """\
name = "one-vlm"
[[tiers]]
name = "vlm"
model = "{model}"
[tiers.server]
port = {port}
max_num_seqs = 8
eager = true
block_size = 32
start_within_s = 300
"""


class Box:
    """A folder in which somebody types natix-fleet vllm."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.env = os.environ | {"NATIX_FLEET_WEIGHTS": str(weights), "PYTHONPATH": str(Path(__file__).parents[2])}
        (folder / "one.toml").write_text(PROFILE.format(model=NAME, port=self.port))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ops.cli", "vllm", *arguments, "--profile", "one.toml"]

    def type(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and all it says."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_S,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "start.err").open("wb") as err:
            return subprocess.Popen(self.command("start"), cwd=self.folder, env=self.env, stderr=err)

    def until_looked_after(self, by: int) -> None:
        """Until that process holds the lock of the server's port, which tells others that it comes."""
        until_s, found = time.monotonic() + 60, None
        while found != by:
            assert time.monotonic() < until_s
            time.sleep(0.05)
            # Taken a moment ago, it does not say by whom yet.
            with suppress(BusyError):
                found = holder(self.folder / f"var/vllm/{self.port}.lock")

    def status(self) -> tuple[int, dict[str, Any]]:
        code, text = self.type("status", "--json")
        return code, json.loads(text)[0]

    def until_healthy(self) -> dict[str, Any]:
        until_s = time.monotonic() + START_S
        while True:
            code, status = self.status()
            if code == 0:
                return status
            assert code == 69
            assert not status["healthy"]
            assert time.monotonic() < until_s, (self.folder / "start.err").read_text()[-3000:]
            time.sleep(0.5)


@pytest.fixture
def box(tiny: Path, tmp_path: Path) -> Box:
    return Box(tmp_path, tiny.parent)


def group(leader: int) -> set[int]:
    """The processes of its group that live."""
    pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = set()
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.add(pid)
    return found


def server_pid(box: Box) -> int:
    """Of the API server, by its own port."""
    needle = f"--port\0{box.port}\0".encode()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if needle in (path / "cmdline").read_bytes():
                    return int(path.name)
            except OSError:
                continue
    raise AssertionError("no such process")


def ask(url: str) -> None:
    """One real question about a photo of noise."""
    out = io.BytesIO()
    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(out, "JPEG")
    image = {"url": f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "Is there roadwork?"}]
    body = {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text


def test_start_status_stop_and_a_kill(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user types them; a killed server takes all it started with it, and comes back; others use it as it is."""
    begun_s = time.monotonic()
    fleet = box.start()
    try:
        box.until_looked_after(fleet.pid)
        status = box.until_healthy()
        log.info("healthy", after_s=time.monotonic() - begun_s, status=status)
        assert (status["model"], status["asleep"], status["running"], status["waiting"]) == (NAME, None, 0, 0)
        ask(status["url"])
        code, text = box.type("start")
        assert code == 75, text
        assert "another vllm start" in text

        # What up and run do with it, and with another model that would want the same port.
        monkeypatch.setenv("NATIX_FLEET_WEIGHTS", box.env["NATIX_FLEET_WEIGHTS"])
        tier = Tier(name="vlm", model=NAME, server=Server(port=box.port))
        # A profile that is told by a path is found from where it was typed.
        monkeypatch.chdir(box.folder)
        found = find_servers(Profile(name="p", tiers=(tier,)), box.folder / "up")
        assert found == Servers(standing={"vlm": status["url"]}, kept=frozenset({"vlm"}))
        assert "used as it is" in found.notes()[0]
        command = [*box.command("status")[:-1], "other.toml"]
        (box.folder / "other.toml").write_text(PROFILE.format(model="qwen3-vl-8b-thinking", port=box.port))
        assert subprocess.run(command, cwd=box.folder, env=box.env, check=False).returncode == 69
        other = msgspec.structs.replace(tier, model="qwen3-vl-8b-thinking")
        with pytest.raises(BusyError, match=f"taken by a server of {NAME}"):
            find_servers(Profile(name="p", tiers=(other,)), box.folder / "up")

        pid = server_pid(box)
        children = group(pid) - {pid}
        assert len(children) >= 2, "an engine core and a worker at least"
        os.kill(pid, signal.SIGKILL)
        box.until_looked_after(fleet.pid)
        until_s = time.monotonic() + 10
        while any(alive(child) for child in children):
            assert time.monotonic() < until_s, children
            time.sleep(0.05)
        status = box.until_healthy()
        ask(status["url"])

        pid = server_pid(box)
        code, text = box.type("stop")
        assert (code, fleet.wait(10)) == (0, 0), text
        assert "have ended" in text
        assert group(pid) == set()
        code, text = box.type("stop")
        assert (code, "no servers run here" in text) == (0, True)
        assert box.status()[0] == 69
    finally:
        if fleet.poll() is None:
            fleet.send_signal(signal.SIGTERM)
            fleet.wait(60)


def test_a_start_that_fails_says_why(box: Box, tiny: Path, tmp_path: Path) -> None:
    """A damaged file of weights: the worker's word, though the API server's comes last."""
    broken = tmp_path / "weights" / NAME
    shutil.copytree(tiny, broken)
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    box.env |= {"NATIX_FLEET_WEIGHTS": str(broken.parent)}
    code, text = box.type("start")
    log.info("failed", text=text)
    assert code == 70
    assert "vlm-server ended before it was ready, 1 time" in text
    said = text.split("its last lines:")[1]
    assert said.index("SafetensorError") < said.index("Engine core initialization failed")


class Alternating:
    """Two tiers that sleep on one processor, each with a real server; the test is their workers."""

    def __init__(self, folder: Path, server: redis.Redis) -> None:
        asked = Server(eager=True, block_size=32, max_num_seqs=8, wake_items=8, wake_after_s=1.0, awake_s=4.0)
        tiers = [
            Tier(
                name=name,
                model=NAME,
                residency="sleep",
                server=msgspec.structs.replace(asked, port=free_port(), timeout_s=10),
            )
            for name in ("a", "b")
        ]
        self.profile = Profile(name="two", tiers=tuple(tiers))
        self.servers = find_servers(self.profile, folder, lock=folder / "lock")
        self.residency = Residency(self.profile, self.servers, lambda: server, folder)
        self.supervisor = Supervisor(list(server_children(self.servers, self.residency)))
        self.urls = {tier.name: self.profile.server_url(tier) for tier in tiers}
        self.rests = {name: Rest(server, name, url) for name, url in self.urls.items()}
        self.events: list[tuple[float, Event]] = []
        self.logs = [child.log for child in self.servers.children if child.log]

    def until(self, true: Callable[[], object], within_s: float) -> float:
        """Seconds until it was so; meanwhile the servers are looked after, and no two are awake."""
        begun_s = time.monotonic()
        while not true():
            self.residency.tend(self.supervisor)
            self.events += [(time.monotonic(), event) for event in self.supervisor.poll()]
            logs = "\n".join(log.read_text()[-2000:] for log in self.logs if log.exists())
            assert time.monotonic() - begun_s < within_s, f"{self.supervisor.states}\n{logs}"
            time.sleep(POLL_INTERVAL_S)
        return time.monotonic() - begun_s

    def asleep(self, name: str) -> bool:
        return bool(httpx2.get(f"{self.urls[name]}/is_sleeping", timeout=5).json()["is_sleeping"])


@pytest.fixture
def alternating(
    tiny: Path, tmp_path: Path, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Alternating]:
    monkeypatch.setenv("NATIX_FLEET_WEIGHTS", str(tiny.parent))
    it = Alternating(tmp_path, redis_client)
    with it.residency, it.supervisor:
        yield it
    for rest in it.rests.values():
        rest._client.close()


def test_two_that_sleep_take_turns(alternating: Alternating, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Real servers, a real ledger: started one after another, woken by what waits, never both awake, nobody starves."""
    it, ledger = alternating, Ledger(redis_client)
    took_s = it.until(lambda: it.supervisor.all_ready, 2 * START_S)
    names = [(event.child, event.what) for _, event in it.events]
    assert names == [("a-server", "started"), ("a-server", "ready"), ("b-server", "started"), ("b-server", "ready")]
    log.info("both servers", after_s=took_s)
    assert it.asleep("a"), "it was put to sleep before the other one began"

    owner = joined(ledger)
    for i in range(30):
        for name in ("a", "b"):
            admit(ledger, f"{name}{i}", 4, tier=name)
    turns: list[str] = []
    worked = dict.fromkeys(("a", "b"), 0)

    def work() -> bool:
        """As a worker does: nothing is claimed while the tier rests; what is claimed is asked."""
        for name in ("a", "b"):
            if it.rests[name]() or it.supervisor.states[name == "b"].phase != "ready":
                continue
            batches = take(ledger, owner, name, 4)
            if not batches:
                continue
            ask(it.urls[name])
            # The server answers only while it is awake: its neighbour is asleep by its own word.
            assert it.asleep("b" if name == "a" else "a")
            to_collector(ledger, owner, batches)
            worked[name] += 4
            if turns[-1:] != [name]:
                turns.append(name)
        # More comes to both for as long as neither had two turns.
        if len(turns) < 4:
            for name in ("a", "b"):
                admit(ledger, f"{name}{len(turns)}{worked[name]}x", 4, tier=name)
        time.sleep(0.1)
        return len(turns) >= 4

    it.until(work, 120)
    log.info("alternated", turns=turns, items=worked)
    taken = read_wakes(tmp_path)
    log.info("wakes", taken=taken)
    assert len(taken["a"].wake) >= 2
    assert len(taken["b"].wake) >= 1

    # A kill: it comes back once its neighbour lets it have the device.
    killed = next(state.pid for state in it.supervisor.states if state.name == "a-server")
    assert killed
    os.kill(killed, signal.SIGKILL)
    it.until(lambda: not it.supervisor.all_ready, 10)
    it.until(lambda: it.supervisor.all_ready, START_S)
    assert it.asleep("b"), "it gave way before the other one came back"
