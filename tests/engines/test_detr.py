"""The detectors of transformers with classes of their own."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DFineConfig, DFineForObjectDetection, RTDetrImageProcessor

from configs.errors import ConfigError
from tests.engines.checkpoints import Shelf, engine_of, photos
from tests.engines.contract import holds
from workers.engines import Shot

LABELS = ("Person", "Traffic cone", "Machinery Vehicle", "Barrel/bucket", "Car")
SMALL: dict[str, Any] = {"input_px": 64, "least_score": 0.0}


def dfine() -> DFineForObjectDetection:
    """A D-FINE of a few layers."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    config = DFineConfig(
        id2label=names,
        label2id={name: i for i, name in names.items()},
        d_model=32,
        encoder_hidden_dim=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_in_channels=[32, 32, 32],
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=10,
        num_denoising=0,
    )
    return DFineForObjectDetection(config)


def test_dfine(shelf: Shelf) -> None:
    """A saved D-FINE is found, loaded and scores each photo by its own boxes."""
    shelf.put("dfine-x", dfine(), RTDetrImageProcessor(do_normalize=False))
    scores = holds(engine_of("dfine-x", **SMALL))
    assert len(set(scores)) == len(scores)


def test_boxes_are_shares_of_the_photo(shelf: Shelf) -> None:
    """Whatever the photo's size, boxes lie within it and have the row's labels only."""
    shelf.put("dfine-x", dfine(), RTDetrImageProcessor(do_normalize=False))
    engine = engine_of("dfine-x", **SMALL)
    found = engine.detect([engine.prepare(photo, Shot()) for photo in photos(3)])  # type: ignore[attr-defined]
    for one in found:
        assert one.boxes.shape == (len(one.labels), 4)
        assert len(one.scores) == len(one.labels) == 10 * 3
        assert np.all((one.boxes >= 0) & (one.boxes <= 1))
        assert set(one.labels) == {"Traffic cone", "Machinery Vehicle", "Barrel/bucket"}


def test_a_class_that_the_checkpoint_lacks_is_named(shelf: Shelf) -> None:
    """A row that asks for a class of another checkpoint is refused at load."""
    shelf.put("dfine-x", dfine(), RTDetrImageProcessor(do_normalize=False))
    with pytest.raises(ConfigError, match="knows no class Unicorn"):
        engine_of("dfine-x", **SMALL, classes={"Unicorn": 1.0})
