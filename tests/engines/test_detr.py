"""The detectors of transformers with classes of their own, beside the library's own way through them."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DetrImageProcessor,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    RfDetrConfig,
    RfDetrForObjectDetection,
    RfDetrImageProcessor,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from configs.errors import ConfigError
from tests.engines.checkpoints import Shelf, engine_of, photos, scores_of
from tests.engines.contract import holds
from workers.engines import Runtime, Shot

SIDE_PX = 64
QUERIES = 10
NAMES = dict(enumerate(("Person", "Traffic cone", "Machinery Vehicle", "Barrel/bucket", "Car")))
LABELS: dict[str, Any] = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}
ALL = dict.fromkeys(NAMES.values(), 1.0)
SMALL: dict[str, Any] = {"input_px": SIDE_PX, "least_score": 0.0}
#: So little of each box that ten of them leave the score of a photo free to move.
FAINT = {"Traffic cone": 0.1, "Barrel/bucket": 0.05}
#: What D-FINE and RT-DETRv2 have alike.
DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_in_channels": [32, 32, 32],
    "encoder_in_channels": [16, 32, 64],
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": QUERIES,
    "num_denoising": 0,
}


def lively(model: Any) -> Any:
    """The model with weights that keep the size of what runs through them: at its own start little of a photo is left.

    Source: K. He and others, Delving Deep into Rectifiers, 2015, 2.2.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                torch.nn.init.kaiming_normal_(weight)
    return model


def dfine() -> tuple[Any, Any]:
    """A D-FINE of a few layers, and the processor of its checkpoints: bytes to shares of one."""
    torch.manual_seed(0)
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 32],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 32, 64],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 32, 64],
        out_features=["stage2", "stage3", "stage4"],
    )
    return lively(DFineForObjectDetection(DFineConfig(**LABELS, **DETR, backbone_config=backbone))), plain_processor()


def rtdetr() -> tuple[Any, Any]:
    """An RT-DETRv2 of a few layers, and the processor of its checkpoints, which is D-FINE's too."""
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 32, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrV2Config(**LABELS, **DETR, backbone_config=backbone)
    return lively(RTDetrV2ForObjectDetection(config)), plain_processor()


def plain_processor() -> Any:
    """Bytes to shares of one, and no more."""
    return RTDetrImageProcessor(do_normalize=False, size={"height": SIDE_PX, "width": SIDE_PX})


def rfdetr() -> tuple[Any, Any]:
    """An RF-DETR of a few layers, and a processor that normalises as its checkpoints' do."""
    torch.manual_seed(0)
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE_PX,
        "patch_size": 16,
        "num_windows": 2,
        "out_features": ["stage1", "stage2"],
    }
    config = RfDetrConfig(
        **LABELS,
        backbone_config=backbone,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=QUERIES,
    )
    processor = RfDetrImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX})
    return lively(RfDetrForObjectDetection(config)), processor


FAMILIES = {"dfine-x": dfine, "rtdetrv2-r50": rtdetr, "rf-detr-large": rfdetr}
every_family = pytest.mark.parametrize("build", FAMILIES.values(), ids=list(FAMILIES))


@every_family
def test_scores_each_photo_by_its_own_boxes(shelf: Shelf, build: Any) -> None:
    """A saved checkpoint is found, loaded, and its score depends on the photo and on nothing else."""
    shelf.put("dfine-x", *build())
    scores = holds(engine_of("dfine-x", **SMALL, classes=FAINT), photos(5))
    assert np.ptp(np.array(scores, float)) > 0.02


@every_family
def test_says_what_the_library_says(shelf: Shelf, build: Any) -> None:
    """Boxes, scores and names are those of the library's own processor, forward pass and post-processing."""
    folder = shelf.put("dfine-x", *build())
    photo = photos(1)[0].resize((SIDE_PX, SIDE_PX))
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        out = AutoModelForObjectDetection.from_pretrained(folder).eval()(**processor(photo, return_tensors="pt"))
    (theirs,) = processor.post_process_object_detection(out, threshold=0.0)
    engine: Any = engine_of("dfine-x", **SMALL, classes=ALL)
    (ours,) = engine.detect([engine.prepare(photo, Shot())])
    # The library keeps as many as there are queries, the surest first.
    best = np.argsort(-ours.scores, kind="stable")[:QUERIES]
    assert ours.scores[best] == pytest.approx(theirs["scores"].numpy(), abs=1e-5)
    assert ours.boxes[best] == pytest.approx(theirs["boxes"].clamp(0, 1).numpy(), abs=1e-4)
    assert [ours.labels[i] for i in best] == [NAMES[i] for i in theirs["labels"].tolist()]


@every_family
def test_without_classes_it_looks_and_abstains(shelf: Shelf, build: Any) -> None:
    """A checkpoint without a class of roadwork loads and runs, and has no vote."""
    shelf.put("dfine-x", *build())
    engine: Any = engine_of("dfine-x", **SMALL, classes={})
    assert scores_of(engine, photos(3)) == [None] * 3
    assert [found.labels for found in engine.detect([None, None])] == [(), ()]


@every_family
def test_half_precision_says_nearly_the_same(shelf: Shelf, build: Any) -> None:
    """fp16 tells places apart to a thousandth, bf16 to a hundredth only: which queries are looked at may change."""
    shelf.put("dfine-x", *build())
    pictures = photos(4)
    whole, half, brain = (
        scores_of(engine_of("dfine-x", Runtime(max_batch=4, precision=precision), **SMALL, classes=FAINT), pictures)
        for precision in ("fp32", "fp16", "bf16")
    )
    assert half == pytest.approx(whole, abs=0.3)
    assert brain == pytest.approx(whole, abs=1.0)
    assert len({tuple(whole), tuple(half), tuple(brain)}) == 3


def test_boxes_are_shares_of_the_photo(shelf: Shelf) -> None:
    """Whatever the photo's size, boxes lie within it and have the row's labels only."""
    shelf.put("dfine-x", *dfine())
    engine: Any = engine_of("dfine-x", **SMALL)
    for one in engine.detect([engine.prepare(photo, Shot()) for photo in photos(3)]):
        assert one.boxes.shape == (len(one.labels), 4)
        assert len(one.scores) == len(one.labels) == QUERIES * 3
        assert np.all((one.boxes >= 0) & (one.boxes <= 1))
        assert set(one.labels) == {"Traffic cone", "Machinery Vehicle", "Barrel/bucket"}


def test_weak_boxes_are_left_out(shelf: Shelf) -> None:
    """Boxes below the row's least score do not count; those above it do."""
    shelf.put("dfine-x", *dfine())
    picture = photos(1)[0]
    engine: Any = engine_of("dfine-x", input_px=SIDE_PX, least_score=0.0)
    (everything,) = engine.detect([engine.prepare(picture, Shot())])
    middle = float(np.median(everything.scores))
    engine = engine_of("dfine-x", input_px=SIDE_PX, least_score=middle)
    (kept,) = engine.detect([engine.prepare(picture, Shot())])
    assert sorted(kept.scores) == sorted(everything.scores[everything.scores >= middle])
    assert 0 < len(kept.scores) < len(everything.scores)


def test_a_class_that_the_checkpoint_lacks_is_named(shelf: Shelf) -> None:
    """A row that asks for a class of another checkpoint is refused at load."""
    shelf.put("dfine-x", *dfine())
    with pytest.raises(ConfigError, match="knows no class Unicorn"):
        engine_of("dfine-x", **SMALL, classes={"Unicorn": 1.0})


def test_the_processor_of_another_family(shelf: Shelf) -> None:
    """A checkpoint says by its own processor whether it is normalised; the older DETR's is such a one."""
    model, _ = rfdetr()
    plain = DetrImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}, do_normalize=False)
    normal = DetrImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX})
    shelf.put("dfine-x", model, plain)
    without = scores_of(engine_of("dfine-x", **SMALL), photos(1))
    shelf.put("dfine-x", model, normal)
    assert scores_of(engine_of("dfine-x", **SMALL), photos(1)) != without


def test_by_night_only(shelf: Shelf) -> None:
    """With the option a bright photo has no score; a dark one has that of its brightened self."""
    shelf.put("dfine-x", *dfine())
    bright = Image.new("RGB", (80, 60), (150, 150, 150))
    dark = Image.new("RGB", (80, 60), (30, 30, 30))
    engine = engine_of("dfine-x", **SMALL, classes=FAINT, options={"night": True, "night_target": 110})
    assert engine.prepare(bright, Shot()) is None
    assert np.all(np.abs(engine.prepare(dark, Shot()).astype(int) - 110) <= 1)
    by_day = engine_of("dfine-x", **SMALL, classes=FAINT)
    lifted = Image.new("RGB", (80, 60), tuple(engine.prepare(dark, Shot())[0, 0].tolist()))
    assert scores_of(engine, [dark]) == pytest.approx(scores_of(by_day, [lifted]), abs=1e-5)
