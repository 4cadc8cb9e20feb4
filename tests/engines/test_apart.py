"""Engines in an interpreter of their own, started as a worker starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from configs.errors import ConfigError
from configs.model import ModelSpec, load_model
from tests.engines.checkpoints import Shelf, photos, scores_of
from tests.engines.contract import holds
from workers.detections import Detections
from workers.engines import DeviceMemoryError, EngineAwayError, Runtime, Shot, apart, build
from workers.engines.apart_frames import Boxes, Depths, Failed, Reply, Scores, receive, send

# The project's own model needs neither torch nor a test's checkpoint: its interpreter is there in a second.
SCOUT = msgspec.structs.replace(load_model("scout-s"), environment="scouts")


def environment(monkeypatch: pytest.MonkeyPatch, name: str = "SCOUTS", python: str = sys.executable) -> None:
    monkeypatch.setenv(f"NATIX_FLEET_PYTHON_{name}", python)


def interpreter(path: Path, flags: str = "", says: str = "") -> None:
    """Another way to this interpreter."""
    path.write_text(f'#!/bin/sh\necho "{says}" >&2\nexec {sys.executable} {flags} "$@"\n')
    path.chmod(0o755)


def started(spec: ModelSpec = SCOUT) -> apart.Engine:
    """Loaded and warm."""
    engine = build(spec, Runtime(max_batch=4))
    assert isinstance(engine, apart.Engine)
    engine.load()
    engine.warm_up()
    return engine


def pid_of(engine: apart.Engine) -> int:
    assert engine._child is not None
    return engine._child._process.pid


def gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether a process ends in time; one that nobody waited for yet has ended too."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def test_scores_are_those_of_the_engine_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the contract of every engine, and its scores are the same to the last digit."""
    environment(monkeypatch)
    engine = started()
    assert pid_of(engine) != os.getpid()
    here = build(load_model("scout-s"), Runtime(max_batch=4))
    here.load()
    assert holds(engine) == scores_of(here, photos(7))


# Runs as a worker would: nothing of the library is imported on this side.
PARENT = """
import json, sys
import msgspec
from configs.model import ModelSpec
from tests.engines.checkpoints import photos, scores_of
from workers.engines import Runtime, Shot, build
engine = build(msgspec.json.decode(sys.argv[1], type=ModelSpec), Runtime(max_batch=4))
engine.load()
engine.warm_up()
scores = scores_of(engine, photos(5))
found = engine.detect([engine.prepare(photo, Shot()) for photo in photos(2)])
here = sorted({"torch", "ultralytics"} & set(sys.modules))
print(json.dumps([here, scores, [[f.boxes.tolist(), f.scores.tolist(), f.labels] for f in found]]))
"""


def test_a_yolo_beside_a_worker_without_its_library(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and boxes of a YOLO come through, and the worker's own process never imports ultralytics nor torch."""
    from tests.engines.tiny_yolo import SPEC, small

    small(shelf, "yolo11n.yaml", "yolo-master-n")
    environment(monkeypatch, "YOLO_MASTER")
    # Two interpreters on the cores of one: their threads would wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = msgspec.structs.replace(SPEC, key="yolo-master-n", environment="yolo-master")
    done = subprocess.run(
        [sys.executable, "-c", PARENT, msgspec.json.encode(spec).decode()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    imported, scores, boxes = json.loads(done.stdout)
    assert imported == []
    inside: Any = build(msgspec.structs.replace(spec, environment=""), Runtime(max_batch=4))
    inside.load()
    assert scores == pytest.approx(scores_of(inside, photos(5)), abs=1e-3)
    for (theirs, sure, labels), ours in zip(
        boxes, inside.detect([inside.prepare(photo, Shot()) for photo in photos(2)]), strict=True
    ):
        assert tuple(labels) == ours.labels != ()
        assert np.array(theirs) == pytest.approx(ours.boxes, abs=1e-4)
        assert sure == pytest.approx(ours.scores.tolist(), abs=1e-4)


def test_a_killed_interpreter_is_said_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death raises, for it may be a photo's fault, and says how it died; the next photos are scored as before."""
    environment(monkeypatch)
    engine = started()
    before, first = scores_of(engine, photos(3)), pid_of(engine)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(apart.ApartError, match=r"model 'scout-s': its interpreter ended by SIGKILL") as caught:
        scores_of(engine, photos(3))
    assert not isinstance(caught.value, EngineAwayError)
    assert scores_of(engine, photos(3)) == before
    assert pid_of(engine) != first
    assert scores_of(started(), photos(3)) == before


def test_an_interpreter_that_cannot_start_again_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No photo is to blame when nothing could have scored it; once it can start, it does."""
    python = tmp_path / "python"
    interpreter(python)
    environment(monkeypatch, python=str(python))
    engine = started()
    before = scores_of(engine, photos(2))
    python.unlink()
    os.kill(pid_of(engine), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(EngineAwayError, match=r"cannot be started again: .*No such file"):
            scores_of(engine, photos(2))
    interpreter(python)
    assert scores_of(engine, photos(2)) == before
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_wrong_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A missing variable, no interpreter, one without our libraries, and what the engine itself says at load."""
    with pytest.raises(
        ConfigError, match=r"set NATIX_FLEET_PYTHON_YOLO_MASTER to .*Tencent/YOLO-Master.*, and msgspec"
    ):
        build(msgspec.structs.replace(SCOUT, environment="yolo-master"), Runtime())
    environment(monkeypatch, python=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere cannot be run: No such file"):
        started()
    bare = tmp_path / "bare"
    interpreter(bare, "-I -S")
    environment(monkeypatch, python=str(bare))
    with pytest.raises(ConfigError, match=r"bare cannot run its engine: ended with status 1: .*No module named"):
        started()
    environment(monkeypatch)
    with pytest.raises(ConfigError, match=r"^model 'scout-s': there is no file .*missing.onnx$"):
        started(msgspec.structs.replace(SCOUT, file="missing.onnx"))
    engine = started()
    with pytest.raises(ConfigError, match="onnx cannot measure"):
        engine.measure([engine.prepare(photos(1)[0], Shot())])
    assert len(scores_of(engine, photos(1))) == 1
    capfd.readouterr()


def test_each_environment_has_its_own_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The row's environment picks the variable, and so the interpreter."""
    for name in ("DEPTH_ANYTHING_3", "YOLO_MASTER"):
        python = tmp_path / name
        interpreter(python, says=name)
        environment(monkeypatch, name, str(python))
    for name in ("depth-anything-3", "yolo-master"):
        engine = started(msgspec.structs.replace(SCOUT, environment=name))
        assert engine._child is not None
        assert engine._child._last[0] == name.upper().replace("-", "_")


def test_it_ends_with_its_parent() -> None:
    """A worker that is killed takes the other interpreter with it; so does an engine that nobody has any more."""
    code = f"""
import msgspec, os, time
os.environ["NATIX_FLEET_PYTHON_SCOUTS"] = {sys.executable!r}
from configs.model import ModelSpec
from workers.engines import Runtime, build
def start():
    engine = build(msgspec.json.decode({msgspec.json.encode(SCOUT)!r}, type=ModelSpec), Runtime())
    engine.load()
    return engine
left = start()
print(left._child._process.pid, flush=True)
del left
kept = start()
print(kept._child._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert gone(int(parent.stdout.readline()))
        pid = int(parent.stdout.readline())
        assert not gone(pid, within_s=0.2)
        parent.kill()
        assert gone(pid)


def test_it_outlives_the_signals_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C and a service manager's SIGTERM reach it too, and the photos in hand still need it."""
    environment(monkeypatch)
    engine = started()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid_of(engine), number)
    first = pid_of(engine)
    assert len(scores_of(engine, photos(2))) == 2
    assert pid_of(engine) == first


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("config", ConfigError),
        ("memory", DeviceMemoryError),
        ("away", EngineAwayError),
        ("other", apart.ApartError),
    ],
)
def test_what_the_engine_raises_there_is_raised_here(
    monkeypatch: pytest.MonkeyPatch, kind: Any, raised: type[Exception]
) -> None:
    """So that the worker halves a batch, lets photos wait or suspects one, as it would for an engine of its own."""
    environment(monkeypatch)
    engine = apart.Engine(SCOUT, Runtime())
    with pytest.raises(raised, match="the reason") as caught:
        engine._checked(Failed(kind, "the reason"))
    assert type(caught.value) is raised


@pytest.mark.parametrize(
    "reply",
    [
        Scores([1.5, None, float("inf")]),
        Boxes([None, Detections(np.array([[0, 0.25, 0.5, 1]], np.float32), np.array([0.75], np.float32), ("cone",))]),
        Boxes([Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())]),
        Depths([np.arange(6, dtype=np.float32).reshape(2, 3), None]),
        Failed("memory", "out"),
    ],
    ids=lambda reply: type(reply).__name__,
)
def test_what_travels_arrives(reply: Any) -> None:
    """Scores, boxes and depths are the same on the other side: values, types and shapes."""
    pipe = BytesIO()
    send(pipe, reply)
    pipe.seek(0)
    arrived: Any = receive(pipe, Reply)  # type: ignore[arg-type]
    assert type(arrived) is type(reply)
    assert repr(arrived) == repr(reply)
    with pytest.raises(EOFError):
        receive(pipe, Reply)  # type: ignore[arg-type]
    with pytest.raises(EOFError):
        receive(BytesIO(pipe.getvalue()[:5]), Reply)  # type: ignore[arg-type]
