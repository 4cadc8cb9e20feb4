"""Image classifiers with exclusive classes."""

import math
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from configs.errors import ConfigError
from configs.model import ModelSpec
from tests.engines.checkpoints import Shelf, photos, scores_of
from tests.engines.contract import holds
from workers.engines import Engine, Runtime, build

ROW = ModelSpec(
    key="natix-roadwork-vit",
    state="shape",
    reason="a small one at random weights",
    engine="classifier",
    extra="detectors",
    input_px=64,
    classes={"Roadwork": 1.0},
)
#: Not ImageNet's, so that a wrong normalisation shows.
PROCESSOR = ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.3, 0.5, 0.6], image_std=[0.2, 0.3, 0.5])


def vit(*labels: str) -> ViTForImageClassification:
    """A ViT of two layers."""
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    config = ViTConfig(
        id2label=names,
        label2id={name: i for i, name in names.items()},
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        # Wide enough that photos differ by more than rounding.
        initializer_range=0.3,
    )
    return ViTForImageClassification(config)


def engine_of(**changes: Any) -> Engine:
    """The row's engine, loaded and warm."""
    fields = {name: getattr(ROW, name) for name in ROW.__struct_fields__} | changes
    engine = build(ModelSpec(**fields), Runtime(max_batch=4))
    engine.load()
    engine.warm_up()
    return engine


def test_scores_each_photo(shelf: Shelf) -> None:
    """A saved ViT is found, loaded and scores each photo by itself."""
    shelf.put(ROW.key, vit("None", "Roadwork"), PROCESSOR)
    scores = holds(engine_of())
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize("labels", [("None", "Roadwork"), ("Roadwork", "Snow", "None")])
def test_agrees_with_the_librarys_own_pipeline(shelf: Shelf, labels: tuple[str, ...]) -> None:
    """P = sigmoid(score) is what transformers' pipeline says of the same photo, up to how Pillow shrinks."""
    folder = shelf.put(ROW.key, vit(*labels), PROCESSOR)
    theirs = pipeline("image-classification", model=str(folder), function_to_apply="softmax", device="cpu")
    pictures = photos(5)
    for picture, score in zip(pictures, scores_of(engine_of(), pictures), strict=True):
        assert score is not None
        said = {row["label"]: row["score"] for row in theirs(picture)}
        assert 1 / (1 + math.exp(-score)) == pytest.approx(said["Roadwork"], abs=0.02)


def test_several_classes_may_mean_roadwork(shelf: Shelf) -> None:
    """Their probabilities add up."""
    shelf.put(ROW.key, vit("Cones", "Road", "Machines"), PROCESSOR)
    pictures = photos(3)
    cones, machines, both = (
        scores_of(engine_of(classes=dict.fromkeys(names, 1.0)), pictures)
        for names in (("Cones",), ("Machines",), ("Cones", "Machines"))
    )
    p = [[1 / (1 + math.exp(-(score or 0.0))) for score in scores] for scores in (cones, machines, both)]
    for one, other, together in zip(*p, strict=True):
        assert together == pytest.approx(one + other, abs=1e-5)


def test_a_row_without_classes_abstains(shelf: Shelf) -> None:
    """No class of it means roadwork, so it has nothing to say."""
    shelf.put(ROW.key, vit("Cat", "Dog"), PROCESSOR)
    engine = engine_of(classes={})
    assert engine.prepare(photos(1)[0], None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "changes", "says"),
    [
        (("None", "Works"), {}, "knows no class Roadwork; it has None, Works"),
        (("Roadwork",), {}, "none is left against it"),
        (("None", "Roadwork"), {"input_px": 96}, r"resizes to \(64, 64\), input_px is 96"),
    ],
)
def test_what_does_not_fit_is_said(shelf: Shelf, labels: tuple[str, ...], changes: dict[str, Any], says: str) -> None:
    """A row that asks for what the checkpoint is not is refused at load."""
    shelf.put(ROW.key, vit(*labels), PROCESSOR)
    with pytest.raises(ConfigError, match=says):
        engine_of(**changes)
