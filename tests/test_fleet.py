"""The main job as a user starts it: real processes, real photos rendered by the project, a report."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import redis
from pyarrow import parquet

from configs.profile import load_profile
from configs.serving import Server
from ops.account import baseline, settle_account
from ops.report import Report
from ops.run import still_s
from ops.server import EmbeddedServer
from producers.admitted import read_journal
from producers.journal import Journal
from producers.sources import open_source
from routing.ledger import Ledger
from tests.ledgers import admit
from workers.verdicts import VerdictDatabase

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / "shared" / "roadwork-photos"


def start(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """natix-fleet run in a folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "run", "--flower-port", "0", *arguments],
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", within_s: float = 150) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"did not end within {within_s} s:\n{output}")
    return process.returncode, output


def report(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "var/report.json").read_text())
    return data


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes whose working directory is the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_a_run_from_photos_to_report(tmp_path: Path) -> None:
    """Rendered scenes go through both tiers; the account balances; nothing stays behind; a second run works as well."""
    for _ in range(2):
        status, output = finish(start(tmp_path, "--photos", "rendered:80"))
        assert status == 0, output
        figures = report(tmp_path)
        assert (figures["admitted"], figures["settled"] + figures["quarantined"]) == (80, 80)
        assert (figures["lost"], figures["counted_twice"], figures["problems"]) == (0, 0, [])
        assert all(tier["scored"] > 0 for tier in figures["tiers"].values())
        assert "rendered, same generator as in training: a smoke figure" in output
        assert "Traceback" not in output
        assert processes_in(tmp_path) == []


def test_the_report_has_its_documented_schema(tmp_path: Path) -> None:
    """docs/report.schema.json is the schema of what the code writes, and a written report decodes by it."""
    schema = json.loads((ROOT / "docs/report.schema.json").read_text())
    assert schema == msgspec.json.schema(Report)
    assert finish(start(tmp_path, "--photos", "rendered:5"))[0] == 0
    decoded = msgspec.json.decode((tmp_path / "var/report.json").read_bytes(), type=Report)
    assert decoded.admitted == 5


def test_twice_at_once_is_refused(tmp_path: Path) -> None:
    """A second run in the same folder says who runs and ends with 75; the first one is not disturbed."""
    first = start(tmp_path, "--photos", "rendered:60")
    try:
        deadline_s = time.monotonic() + 20
        while not (tmp_path / "var/run.lock").exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(0.5)
        status, output = finish(start(tmp_path, "--photos", "rendered:5"))
        assert status == 75
        assert re.search(r"error: another run \(pid \d+\) is going on", output)
    finally:
        status, output = finish(first)
    assert status == 0, output


def test_ctrl_c_drains(tmp_path: Path) -> None:
    """After Ctrl-C what was admitted ends, the report says so, and the status is the shell's 130."""
    run = start(tmp_path, "--photos", "rendered:5000")
    deadline_s = time.monotonic() + 60
    journal = tmp_path / "var/run/journal"
    while not any(p.stat().st_size > 300 for p in journal.glob("*.jsonl")) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    status, output = finish(run)
    assert status == 130, output
    figures = report(tmp_path)
    assert 0 < figures["admitted"] < 5000
    assert figures["admitted"] == figures["settled"] + figures["quarantined"]
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("log", ["collector", "producer"])
def test_ctrl_c_before_the_producer_listens(tmp_path: Path, log: str) -> None:
    """Ctrl-C while workers warm up, or while the producer starts, ends the run soon: 130, a report, nothing fed."""
    run = start(tmp_path, "--photos", "rendered:5000")
    deadline_s = time.monotonic() + 60
    while not (tmp_path / f"var/run/{log}.log").exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    status, output = finish(run, within_s=40)
    assert status == 130, output
    figures = report(tmp_path)
    assert (figures["admitted"], figures["settled"], figures["lost"], figures["problems"]) == (0, 0, 0, [])
    assert processes_in(tmp_path) == []


def test_a_producer_that_fails_ends_the_run(tmp_path: Path) -> None:
    """A damaged row group ends the run with the producer's own 66 and its last words, not an endless silence."""
    path = tmp_path / "a.parquet"
    images = [{"bytes": photo.data} for photo in open_source("rendered:40").photos(0)]
    parquet.write_table(pa.table({"image": images, "label": [0, 1] * 20}), path, row_group_size=10)
    column = parquet.read_metadata(path).row_group(3).column(0)
    data = bytearray(path.read_bytes())
    at = column.dictionary_page_offset or column.data_page_offset
    data[at : at + 64] = b"\xff" * 64
    path.write_bytes(data)
    status, output = finish(start(tmp_path, "--photos", str(path)), within_s=60)
    assert status == 66, output
    assert "producer failed: exit status 66" in output
    assert "a.parquet" in output.partition("its last lines")[2]
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("killed", [["server/server.pid"], ["scout-s.ready", "scout-m.ready", "collector.ready"]])
def test_killed_processes_cost_no_photo(tmp_path: Path, killed: list[str]) -> None:
    """kill -9 of the server, or of all workers, in the middle of a run: all start again, and the account balances."""
    run = start(tmp_path, "--photos", "rendered:150")
    deadline_s = time.monotonic() + 60
    journal = tmp_path / "var/run/journal"
    while not any(p.stat().st_size > 600 for p in journal.glob("*.jsonl")) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    for pid_file in killed:
        os.kill(int((tmp_path / "var/run" / pid_file).read_text().split()[0]), signal.SIGKILL)
    status, output = finish(run)
    assert status == 0, output
    figures = report(tmp_path)
    assert (figures["admitted"], figures["settled"]) == (150, 150)
    assert (figures["lost"], figures["counted_twice"], figures["problems"]) == (0, 0, [])


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "own-server", fsync="everysec") as server:
        yield server


TAKE_ONE = """
for _, bid in ipairs(redis.call('ZRANGE', '{nf}:ready:' .. ARGV[1] .. ':bulk', 0, 0)) do
  local b = redis.call('HMGET', '{nf}:b:' .. bid, 'n', 'bytes')
  redis.call('ZREM', '{nf}:ready:' .. ARGV[1] .. ':bulk', bid)
  redis.call('DEL', '{nf}:b:' .. bid)
  redis.call('HINCRBY', '{nf}:use', 'ready:' .. ARGV[1], -b[1])
  redis.call('HINCRBY', '{nf}:use', 'items', -b[1])
  return tonumber(b[1])
end
return 0
"""

COPY_ONE = """
for _, bid in ipairs(redis.call('ZRANGE', '{nf}:ready:' .. ARGV[1] .. ':bulk', 0, 0, 'WITHSCORES')) do
  local b = redis.call('HGETALL', '{nf}:b:' .. bid)
  if #b == 0 then return 0 end
  local n = tonumber(redis.call('HGET', '{nf}:b:' .. bid, 'n'))
  redis.call('HSET', '{nf}:b:copy', unpack(b))
  redis.call('ZADD', '{nf}:ready:' .. ARGV[1] .. ':bulk', redis.call('HGET', '{nf}:b:copy', 'order'), 'copy')
  redis.call('HINCRBY', '{nf}:use', 'ready:' .. ARGV[1], n)
  redis.call('HINCRBY', '{nf}:use', 'items', n)
  return n
end
return 0
"""


def meddle(server: EmbeddedServer, script: str, result: list[int]) -> threading.Thread:
    """Runs a script against the first tier's ready list until it did its deed once."""

    def run() -> None:
        with redis.Redis.from_url(server.url) as client:
            deed = client.register_script(script)
            deadline_s = time.monotonic() + 60
            while not result and time.monotonic() < deadline_s:
                if n := int(str(deed(args=["scout-s"]))):
                    result.append(n)
                time.sleep(0.001)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_lost_batch_is_seen(tmp_path: Path, own_server: EmbeddedServer) -> None:
    """When somebody deletes a batch from the ledger, the report says how many are lost, and the run ends with 1."""
    lost: list[int] = []
    thread = meddle(own_server, TAKE_ONE, lost)
    status, output = finish(start(tmp_path, "--photos", "rendered:300", env={"REDIS_URL": own_server.url}))
    thread.join()
    assert status == 1, output
    assert report(tmp_path)["lost"] == lost[0]
    assert "problem:" in output


def test_what_is_in_the_fleet_is_not_lost(tmp_path: Path, own_server: EmbeddedServer) -> None:
    """Photos without a row are lost only when they are not in the fleet either; the report says where to look."""
    profile = load_profile("demo")
    with redis.Redis.from_url(own_server.url) as client, VerdictDatabase(f"sqlite:///{tmp_path}/v.db") as database:
        ledger = Ledger(client)
        before = baseline(ledger, profile)
        admit(ledger, "s", 10, size=4, tier="scout-s")
        with Journal.create(tmp_path, "s", profile="p", spec="s", limit=None, started_ms=1) as journal:
            journal.admitted(0, 10, labels=[1] * 10, origins=["o"] * 10, seen=[False] * 10, bad=[])
        journals = [read_journal(journal.path)]
        account = settle_account(journals, database, ledger, before)
        assert (account.lost, account.balanced) == (0, False)
        assert "10 photos are still in the fleet: see var/run/*.log" in account.problems
        assert client.register_script(TAKE_ONE)(args=["scout-s"]) == 4
        account = settle_account(journals, database, ledger, before)
        assert account.lost == 4
        assert "6 photos are still in the fleet: see var/run/*.log" in account.problems


def test_loss_is_declared_after_recovery() -> None:
    """A run waits longer for what does not move than a stalled tier or collector takes to end, and its lease."""
    profile = load_profile("demo")
    assert still_s(profile) >= 80 + profile.delivery.lease_s
    slow = msgspec.structs.replace(profile.tiers[0], stall_s=300.0)
    assert still_s(msgspec.structs.replace(profile, tiers=(slow,))) >= 320 + profile.delivery.lease_s


def test_loss_is_declared_after_the_longest_question() -> None:
    """A question to a server that hangs is no stall of its worker; where no model is served, its bound is nobody's."""
    profile = load_profile("demo")
    patient = msgspec.structs.replace(profile.tiers[0], server=Server(timeout_s=600.0))
    usual_s = still_s(profile)
    assert still_s(msgspec.structs.replace(profile, tiers=(patient,))) == usual_s
    served = msgspec.structs.replace(patient, model="qwen3-vl-4b-instruct")
    assert still_s(msgspec.structs.replace(profile, tiers=(served,))) >= 600 + profile.delivery.lease_s


def test_a_living_fleet_is_not_joined(tmp_path: Path, own_server: EmbeddedServer) -> None:
    """On a server with a living fleet a run is refused with 75; what a killed one left there is no obstacle."""
    env = {**os.environ, "REDIS_URL": own_server.url}
    other = tmp_path / "other"
    other.mkdir()
    collector = subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "collector"],
        cwd=other,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with redis.Redis.from_url(own_server.url) as client:
            deadline_s = time.monotonic() + 30
            while not client.hlen("{nf}:owners"):
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        status, output = finish(start(tmp_path, "--photos", "rendered:5", env=env))
        assert status == 75, output
        assert "a fleet runs on this server: feed it with natix-fleet feed, or stop it first" in output
    finally:
        collector.kill()
        collector.wait()
    status, output = finish(start(tmp_path, "--photos", "rendered:5", env=env))
    assert status == 0, output


def test_a_batch_applied_twice_is_seen(tmp_path: Path, own_server: EmbeddedServer) -> None:
    """When a batch is in the ledger twice, the counters betray it, and the run ends with 1."""
    copied: list[int] = []
    thread = meddle(own_server, COPY_ONE, copied)
    status, output = finish(start(tmp_path, "--photos", "rendered:300", env={"REDIS_URL": own_server.url}))
    thread.join()
    assert status == 1, output
    assert report(tmp_path)["counted_twice"] == copied[0]
    assert report(tmp_path)["lost"] == 0


@pytest.mark.skipif(not PHOTOS.exists(), reason="the 1,082 real photos are not beside the project")
def test_real_photos(tmp_path: Path) -> None:
    """1,082 labelled photos are accounted for by both tiers, those seen in training counted apart."""
    status, output = finish(start(tmp_path, "--photos", str(PHOTOS)))
    assert status == 0, output
    figures = report(tmp_path)
    assert figures["admitted"] == 1082 == figures["settled"]
    assert figures["seen_in_training"]["count"] > 500
    assert sum(window["tp"] + window["tn"] + window["fp"] + window["fn"] for window in [figures["mcc"]["all"]]) == (
        1082 - figures["seen_in_training"]["count"]
    )
    assert all(tier["settled"] > 0 for tier in figures["tiers"].values())
