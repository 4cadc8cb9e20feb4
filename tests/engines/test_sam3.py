"""SAM 3: what our way through the model gives is what the library's own gives, photo by photo and phrase by phrase."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Sam3Model, Sam3Processor

from configs.errors import ConfigError
from tests.engines.checkpoints import STILL, Shelf, engine_of, photos
from tests.engines.contract import holds
from tests.engines.tiny_sam3 import PROMPTS, SIDE_PX, SMALL, sam3
from workers.engines import Runtime
from workers.engines.sam3 import Engine


@pytest.fixture
def folder(shelf: Shelf) -> Path:
    """A small checkpoint, found under the row's key."""
    return shelf.put("sam3", *sam3())


def library(folder: Path, photo: object, phrase: str) -> tuple[float, list[float], list[list[float]]]:
    """Presence, scores and boxes (in shares) of one phrase in one photo, all by the library's own code."""
    model, processor = Sam3Model.from_pretrained(folder).eval(), Sam3Processor.from_pretrained(folder)
    with torch.no_grad():
        out = model(**processor(images=photo, text=phrase, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(out, threshold=0.0)
    return out.presence_logits.sigmoid().item(), found["scores"].tolist(), found["boxes"].clamp(0, 1).tolist()


@pytest.mark.usefixtures("folder")
def test_sam3() -> None:
    """A saved SAM 3 is found, loaded and scores each photo by its own presences."""
    scores = holds(engine_of("sam3", **SMALL))
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize("phrase", PROMPTS)
def test_as_the_library_says(folder: Path, phrase: str) -> None:
    """Features computed once, phrases in one batch, no masks: to 1e-4 what the library's processor and model give."""
    engine = engine_of("sam3", **SMALL)
    assert isinstance(engine, Engine)
    photo = photos(1)[0].resize((SIDE_PX, SIDE_PX))
    _, scores, boxes = library(folder, photo, phrase)
    (found,) = engine.detect([engine.prepare(photo, STILL)])
    mine = [i for i, label in enumerate(found.labels) if label == phrase]
    assert len(mine) == len(scores) == 10
    np.testing.assert_allclose(found.scores[mine], scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes[mine], boxes, atol=1e-4)


def test_score_is_of_presence(folder: Path) -> None:
    """The image score is the noisy-or of the library's presences, each with its prompt's weight, whatever the boxes."""
    photo = photos(1)[0].resize((SIDE_PX, SIDE_PX))
    none = math.prod(1 - weight * library(folder, photo, phrase)[0] for phrase, weight in PROMPTS.items())
    for least_score in (0.0, 0.99):
        engine = engine_of("sam3", **{**SMALL, "least_score": least_score})
        (score,) = engine.score([engine.prepare(photo, STILL)])
        assert score == pytest.approx(math.log((1 - none) / none), abs=1e-3)


@pytest.mark.usefixtures("folder")
def test_boxes_below_the_least_score_are_left_out() -> None:
    """A box counts from the row's least score on; a photo may have none at all."""
    everything, some, nothing = (engine_of("sam3", **{**SMALL, "least_score": least}) for least in (0.0, 0.3, 0.9999))
    square = everything.prepare(photos(1)[0], STILL)
    assert isinstance(everything, Engine)
    assert isinstance(some, Engine)
    assert isinstance(nothing, Engine)
    (all_boxes,), (few,), (none,) = everything.detect([square]), some.detect([square]), nothing.detect([square])
    assert len(all_boxes.labels) == 30
    assert 0 < len(few.labels) == int((all_boxes.scores >= 0.3).sum()) < 30
    assert none.boxes.shape == (0, 4)
    assert none.labels == ()


@pytest.mark.usefixtures("folder")
def test_bf16_is_near_fp32() -> None:
    """In half precision the score moves by little: nothing overflows on the way."""
    exact = engine_of("sam3", **SMALL)
    halved = engine_of("sam3", Runtime(max_batch=2, precision="bf16"), **SMALL)
    squares = [exact.prepare(photo, STILL) for photo in photos(3)]
    assert halved.score(squares) == pytest.approx(exact.score(squares), abs=0.5)


@pytest.mark.usefixtures("folder")
def test_prompts_that_cannot_be_read_are_refused() -> None:
    """No prompt, or one longer than the text encoder, is the row's fault and said so at load."""
    with pytest.raises(ConfigError, match="no prompts"):
        engine_of("sam3", **{**SMALL, "prompts": {}})
    with pytest.raises(ConfigError, match=r"'z{40}' has over 32 tokens"):
        engine_of("sam3", **{**SMALL, "prompts": {"traffic cone": 1.0, "z" * 40: 1.0}})


@pytest.mark.usefixtures("folder")
def test_another_input_size_is_refused() -> None:
    """Positions are of one size: a row that says another is refused."""
    with pytest.raises(ConfigError, match="takes 112 px, not input_px = 224"):
        engine_of("sam3", **{**SMALL, "input_px": 224})
