"""Small checkpoints at random weights, built and saved with each library's own classes; found as real ones are."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from configs.model import ModelSpec, load_model
from workers.engines import Engine, Runtime, Shot, build
from workers.weights import WEIGHTS_VARIABLE

STILL = Shot()


class Shelf:
    """Where a test puts checkpoints, so that workers.weights finds them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        monkeypatch.setenv(WEIGHTS_VARIABLE, str(root))

    def put(self, key: str, *parts: Any) -> Path:
        """Saves the parts of a checkpoint (whatever has save_pretrained) under a model's key."""
        folder = self._root / key
        folder.mkdir(exist_ok=True)
        for part in parts:
            part.save_pretrained(folder)
        return folder


def engine_of(key: str, runtime: Runtime | None = None, **changes: Any) -> Engine:
    """The engine of a catalogue row, changed for a small checkpoint, loaded and warm."""
    engine = build(spec_of(key, **changes), runtime or Runtime(max_batch=4))
    engine.load()
    engine.warm_up()
    return engine


def spec_of(key: str, **changes: Any) -> ModelSpec:
    """A catalogue row, changed for a small checkpoint."""
    return msgspec.structs.replace(load_model(key), **changes)


def photos(count: int, seed: int = 0) -> list[Image.Image]:
    """Photos of mixed sizes and shapes, all different."""
    dice = np.random.default_rng(seed)
    sizes = dice.integers(40, 260, (count, 2)).tolist()
    return [Image.fromarray(dice.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def scores_of(engine: Engine, pictures: list[Image.Image], shot: Shot = STILL) -> list[float | None]:
    """What an engine says of photos, as a panel would ask it."""
    return list(engine.score([engine.prepare(picture, shot) for picture in pictures]))
