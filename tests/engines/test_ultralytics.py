"""YOLO11, YOLO26 and YOLOE of the ultralytics package, at random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from configs.errors import ConfigError
from configs.model import ModelSpec
from tests.engines.checkpoints import Shelf, photos, scores_of
from tests.engines.contract import holds
from tests.engines.tiny_yolo import CLASSES, NAMES, PROMPTS, SPEC, small, words
from workers.engines import Runtime, Shot
from workers.engines.ultralytics import Engine
from workers.engines.yoloe import Engine as Yoloe

# The engine's file comes before: it tells the library to stay off the network.
from ultralytics import YOLO, YOLOE  # isort: skip


def engine_of(spec: ModelSpec = SPEC, runtime: Runtime | None = None, kind: type[Engine] = Engine) -> Engine:
    """Loaded and warm."""
    engine = kind(spec, runtime or Runtime(max_batch=4))
    engine.load()
    engine.warm_up()
    return engine


def changed(**changes: Any) -> ModelSpec:
    return msgspec.structs.replace(SPEC, **changes)


@pytest.mark.parametrize("kind", ["yolo11n.yaml", "yolo26n.yaml"])
def test_yolo(shelf: Shelf, kind: str) -> None:
    """A checkpoint that the library saved is found, loaded and scores each photo by its own boxes."""
    small(shelf, kind)
    scores = holds(engine_of())
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize(
    ("kind", "options"), [("yolo11n.yaml", {}), ("yolo26n.yaml", {}), ("yolo26n.yaml", {"nms": False})]
)
def test_boxes_are_those_of_predict(shelf: Shelf, kind: str, options: dict[str, Any]) -> None:
    """The boxes, scores and classes are those that the library's own predict() finds in the same photos."""
    path = small(shelf, kind)
    pictures = [*photos(3), photos(1)[0].resize((300, 40))]
    engine = engine_of(changed(options=options))
    found = engine.detect([engine.prepare(picture, Shot()) for picture in pictures])
    ids = [NAMES.index(name) for name in CLASSES]
    for picture, ours in zip(pictures, found, strict=True):
        (theirs,) = YOLO(path).predict(
            picture,
            imgsz=SPEC.input_px,
            conf=SPEC.least_score,
            classes=ids,
            rect=False,
            device="cpu",
            verbose=False,
            **options,
        )
        assert len(ours.labels) == len(theirs.boxes) > 0
        assert ours.labels == tuple(NAMES[int(i)] for i in theirs.boxes.cls)
        assert ours.scores == pytest.approx(theirs.boxes.conf.numpy(), abs=1e-4)
        assert ours.boxes == pytest.approx(theirs.boxes.xyxyn.numpy(), abs=1e-4)


def test_a_row_without_classes_abstains(shelf: Shelf) -> None:
    """A checkpoint without a class of roadwork runs and has no vote: None, never a score."""
    small(shelf)
    engine = engine_of(changed(classes={}))
    assert scores_of(engine, photos(3)) == [None] * 3
    found = engine.detect([engine.prepare(photo, Shot()) for photo in photos(2)])
    assert [one.labels for one in found] == [(), ()]


def test_half_precision(shelf: Shelf) -> None:
    """In fp16 and bf16 the scores are near those of fp32."""
    small(shelf)
    exact = scores_of(engine_of(), photos(4))
    for precision, apart in (("fp16", 0.2), ("bf16", 2.0)):
        rough = scores_of(engine_of(runtime=Runtime(max_batch=4, precision=precision)), photos(4))  # type: ignore[arg-type]
        assert rough == pytest.approx(exact, abs=apart)
        assert rough != exact


def test_what_is_wrong_is_said_at_load(shelf: Shelf) -> None:
    """A class that the checkpoint lacks, a folder, a file that is no checkpoint, a side that is no multiple of 32."""
    path = small(shelf)
    with pytest.raises(ConfigError, match=r"knows no class Unicorn$"):
        engine_of(changed(classes={"Unicorn": 1.0, "Car": 1.0}))
    with pytest.raises(ConfigError, match="names no file"):
        engine_of(changed(file=""))
    with pytest.raises(ConfigError, match="no multiple of the checkpoint's 32"):
        engine_of(changed(input_px=100))
    path.write_bytes(b"no pickle")
    with pytest.raises(ConfigError, match=r"model 'yolo26-x': its weights cannot be loaded: .*small.pt") as caught:
        engine_of()
    assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(shelf: Shelf) -> None:
    """A checkpoint is a pickle; one that would call what is no part of a model is not loaded."""

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(shelf.put("trap") / "sprung"),)

    torch.save({"model": Trap()}, shelf.put(SPEC.key) / SPEC.file)
    with pytest.raises(ConfigError, match="its weights cannot be loaded"):
        engine_of()
    assert not (shelf.put("trap") / "sprung").exists()


def test_the_library_stays_at_home(shelf: Shelf, tmp_path: Path) -> None:
    """Loading and scoring open no socket, start no process and write nothing outside a directory of their own."""
    small(shelf)
    home, out = tmp_path / "home", tmp_path / "events.json"
    home.mkdir()
    code = f"""
import json, os, sys
events = []
def note(event, args):
    # A socket may be made (a module asks whether it can); it must not go anywhere.
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen",
                 "os.posix_spawn", "os.system", "os.exec", "os.fork", "urllib.Request"):
        events.append([event, str(args)])
    if event == "open" and str(args[0]).startswith({str(home)!r}) and args[1] and set(args[1]) & set("wax+"):
        events.append([event, str(args)])
sys.addaudithook(note)
import msgspec
from PIL import Image
from configs.model import ModelSpec
from workers.engines import Runtime, Shot, build
spec = msgspec.json.decode({msgspec.json.encode(SPEC)!r}, type=ModelSpec)
engine = build(spec, Runtime(max_batch=2))
engine.load()
engine.warm_up()
scores = engine.score([engine.prepare(Image.new("RGB", (90, 60)), Shot())])
from ultralytics.utils import SETTINGS_FILE
with open({str(out)!r}, "w") as file:
    json.dump({{"events": events, "scores": scores, "settings": str(SETTINGS_FILE),
               "threads": os.environ.get("OMP_NUM_THREADS")}}, file)
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO", "ULTRA", "OMP"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | {"HOME": str(home)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(out.read_text())
    assert seen["events"] == []
    assert isinstance(seen["scores"][0], float)
    assert list(home.rglob("*")) == []
    assert "natix-fleet-ultralytics-" in seen["settings"]
    assert not Path(seen["settings"]).exists()
    assert seen["threads"] is None


@pytest.mark.parametrize("kind", ["yoloe-26n-seg.yaml", "yoloe-26n.yaml", "yoloe-11s.yaml"])
def test_yoloe(shelf: Shelf, kind: str) -> None:
    """A YOLOE with embeddings made before needs no text encoder; its boxes are those of predict()."""
    spec, path = words(shelf, kind)
    engine = engine_of(spec, kind=Yoloe)
    holds(engine, photos(3))
    picture = photos(1)[0]
    model = YOLOE(path)
    model.load_prompt_embeddings(path.parent / "embeddings.npz")
    (theirs,) = model.predict(
        picture, imgsz=SPEC.input_px, conf=spec.least_score, rect=False, device="cpu", verbose=False
    )
    (ours,) = engine.detect([engine.prepare(picture, Shot())])
    assert len(ours.labels) == len(theirs.boxes) > 0
    assert ours.labels == tuple(list(PROMPTS)[int(i)] for i in theirs.boxes.cls)
    assert ours.boxes == pytest.approx(theirs.boxes.xyxyn.numpy(), abs=1e-4)
    assert ours.scores == pytest.approx(theirs.boxes.conf.numpy(), abs=1e-4)


def test_yoloe_wants_its_own_embeddings(shelf: Shelf) -> None:
    """Without their file, with a prompt that is not in it, or with those of another checkpoint: one clear line."""
    spec, path = words(shelf, "yoloe-11s.yaml")
    with pytest.raises(ConfigError, match=r"knows no class a hole$"):
        engine_of(msgspec.structs.replace(spec, prompts={"a hole": 1.0}), kind=Yoloe)
    made = path.parent / "embeddings.npz"
    with np.load(made) as file:
        there = dict(file)
    np.savez(made, **there | {"model": np.asarray("another")})
    with pytest.raises(ConfigError, match="'another' cannot be loaded into 'small'"):
        engine_of(spec, kind=Yoloe)
    made.unlink()
    with pytest.raises(ConfigError, match=r"embeddings\.npz; workers/engines/yoloe.py says how"):
        engine_of(spec, kind=Yoloe)


def test_boxes_lie_within_the_photo(shelf: Shelf) -> None:
    """Whatever the photo's shape, boxes are shares of it and have the row's labels only."""
    small(shelf)
    engine = engine_of()
    found = engine.detect([engine.prepare(photo, Shot()) for photo in photos(3)])
    for one in found:
        assert one.boxes.shape == (len(one.labels), 4)
        assert np.all((one.boxes >= 0) & (one.boxes <= 1))
        assert set(one.labels) <= set(CLASSES)
