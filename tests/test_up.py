"""A supervised fleet as its user meets it: up, feed, ask, status, quarantine, export, a dead server, down."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from producers.scenes import DEMO_SEEDS, render

ROOT = Path(__file__).parents[1]


class Box:
    """A folder with a fleet in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "up.err").open("wb") as errors:
            self.fleet = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "up", "--flower-port", "0"],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def command(self, *arguments: str, status: int = 0) -> str:
        """A natix-fleet command in the folder; its output, errors included."""
        done = subprocess.run(
            [sys.executable, "-m", "ops.cli", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def status(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads(self.command("status", "--json"))
        return figures

    def wait_for(self, what: str, value: int) -> dict[str, Any]:
        """The status, once it says so."""
        deadline_s = time.monotonic() + 60
        while (now := self.status())[what] != value:
            assert time.monotonic() < deadline_s, now
            time.sleep(0.2)
        return now


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """One fleet for the tests of this file, which follow one another."""
    box = Box(tmp_path_factory.mktemp("box"))
    try:
        deadline_s = time.monotonic() + 60
        ready = box.folder / "var/up"
        while not all((ready / f"{name}.ready").exists() for name in ("collector", "scout-s", "scout-m")):
            assert box.fleet.poll() is None, (box.folder / "up.err").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield box
    finally:
        if box.fleet.poll() is None:
            box.fleet.kill()
        box.fleet.wait()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes, and six files that are no photos."""
    folder = tmp_path_factory.mktemp("photos")
    for i, seed in enumerate(DEMO_SEEDS[:6]):
        image, label = render(seed)
        place = folder / ("roadwork" if label else "no_roadwork")
        place.mkdir(exist_ok=True)
        image.save(place / f"scene-{i}.jpg", quality=90)
    some = next(folder.rglob("*.jpg")).read_bytes()
    bad = folder / "no_roadwork"
    (bad / "empty.jpg").write_bytes(b"")
    (bad / "text.jpg").write_bytes(b"<html>not a photo</html>")
    (bad / "cut.jpg").write_bytes(some[: len(some) // 2])
    (bad / "folder-link.jpg").symlink_to("/etc/passwd")
    Image.new("1", (20_000, 20_000)).save(bad / "bomb.png")
    (bad / "gif.gif").write_bytes(b"GIF89a" + bytes(30))
    return folder


def test_a_question_is_answered(box: Box, photos: Path) -> None:
    """ask says p, the settling tier and each vote, well inside a validator's nine seconds."""
    answer = json.loads(box.command("ask", str(next((photos / "roadwork").iterdir())), "--json"))
    assert 0 < answer["p"] < 1
    assert answer["tier"] in ("scout-s", "scout-m")
    assert answer["votes"][0]["tier"] == "scout-s"
    assert answer["seconds"] < 5


def test_bad_photos_are_quarantined_and_their_neighbours_judged(box: Box, photos: Path) -> None:
    """What is no photo in a fed folder ends in quarantine with a reason; the rest ends in verdicts."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "producers/natix.py"), str(photos), "--run", "r1", "--linger-ms", "5"],
        cwd=box.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "12 photos admitted, 6 of them bad at intake" in done.stdout
    now = box.wait_for("ended", 13)
    assert now["quarantined"] == 6
    assert now["in_fleet"] == 0
    assert "all" in now["mcc"]
    listed = box.command("quarantine", "list")
    for reason in ("empty", "not-an-image", "truncated", "pixel-bomb", "unreadable", "unsupported-format"):
        assert reason in listed


def test_quarantine_shows_refuses_and_drops(box: Box) -> None:
    """A void's row can be seen; what was bad at intake has no bytes to replay; dropped is dropped once."""
    line = next(line for line in box.command("quarantine", "list").splitlines() if "truncated" in line)
    image_id = next(word for word in line.split() if ":" in word)
    assert "truncated" in box.command("quarantine", "show", image_id)
    assert "its bytes are not kept" in box.command("quarantine", "replay", image_id, status=66)
    assert "1 of 1 dropped" in box.command("quarantine", "drop", image_id)
    assert "not in quarantine" in box.command("quarantine", "drop", image_id, status=66)


def test_verdicts_can_be_taken_away(box: Box) -> None:
    """Every image's row is in the exported file."""
    assert "13 verdicts written" in box.command("verdicts", "export", "out.parquet")
    table = pq.read_table(box.folder / "out.parquet")
    assert table.num_rows == 13
    assert {"source", "position", "p", "label", "tier", "votes", "sha256"} <= set(table.column_names)


def test_a_dead_server_comes_back(box: Box, photos: Path) -> None:
    """kill -9 of the embedded server: it is started again with its data, and the fleet goes on."""
    pid = int((box.folder / "var/server/server.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    answer = json.loads(box.command("ask", str(next((photos / "roadwork").iterdir())), "--deadline-s", "30", "--json"))
    assert 0 < answer["p"] < 1
    assert box.wait_for("ended", 14)["admitted"] == 14


def test_a_second_fleet_is_refused(box: Box) -> None:
    """up in the same folder says who runs."""
    assert "another fleet" in box.command("up", "--flower-port", "0", status=75)


def test_workers_of_another_profile_are_refused(box: Box) -> None:
    """A worker that would decide otherwise does not join."""
    other = box.folder / "other.toml"
    other.write_text((ROOT / "configs/demo.toml").read_text().replace("accept_below = 0.15", "accept_below = 0.01"))
    output = box.command("worker", "scout-s", "--profile", str(other), status=78)
    assert "runs another profile" in output


@pytest.mark.faults
def test_the_fleet_restarts_while_it_works(box: Box) -> None:
    """restart replaces every process under load, a tier's by one that is ready, and says so; nothing is lost."""
    before = box.status()
    feeding = subprocess.Popen(
        [sys.executable, str(ROOT / "producers/natix.py"), "rendered:80", "--run", "r2"],
        cwd=box.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with feeding:
        said = box.command("restart")
        assert feeding.wait(120) == 0
    assert [line.split(":")[0] for line in said.splitlines()] == [
        *(f"collector {what}" for what in ("draining", "started", "ready", "replaced")),
        *(f"{tier} {what}" for tier in ("scout-s", "scout-m") for what in ("started", "ready", "draining", "replaced")),
        "fleet restarted",
    ]
    now = box.wait_for("ended", before["ended"] + 80)
    assert now["quarantined"] == before["quarantined"]
    assert now["admitted"] == now["ended"]
    assert box.fleet.poll() is None


def test_sigterm_drains(box: Box) -> None:
    """The fleet ends with 0 and takes its processes and its URL file along."""
    box.fleet.terminate()
    assert box.fleet.wait(60) == 0, (box.folder / "up.err").read_text()
    assert not (box.folder / "var/server/url").exists()
    cwds = [p for p in Path("/proc").glob("[0-9]*/cwd") if _is_in(p, box.folder)]
    assert cwds == []


def _is_in(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:
        return False
