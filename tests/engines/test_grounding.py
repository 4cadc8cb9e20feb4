"""Grounding DINO and its kin, beside the library's own way through them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    SwinConfig,
)

from configs.errors import ConfigError
from tests.engines.checkpoints import Shelf, engine_of, photos, scores_of
from tests.engines.contract import holds
from workers.engines import Runtime, Shot
from workers.engines.grounding import sheet, text_of

SIDE_PX = 96
QUERIES = 8
PROMPTS = {"Traffic cone": 0.05, "road barrier": 0.02, "excavator": 0.05}
WORDS = ("traffic", "cone", "road", "barrier", "ex", "##cav", "##ator")
KEY = "mm-grounding-dino-large"
SMALL: dict[str, Any] = {"input_px": SIDE_PX, "least_score": 0.0, "prompts": PROMPTS}
FAMILIES = {
    "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def processor(folder: Path) -> GroundingDinoProcessor:
    """Of a few words; the marks have the places that the model knows them by: 101, 102, 1012, 1029."""
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    places |= {2000 + i: word for i, word in enumerate(WORDS)}
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(places.get(i, f"[unused{i}]") for i in range(2000 + len(WORDS))))
    size = {"shortest_edge": SIDE_PX, "longest_edge": SIDE_PX}
    return GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), BertTokenizerFast(str(vocabulary)))


def model(family: str) -> Any:
    """A few layers: a small Swin, a small BERT; weights large enough that the photo matters."""
    torch.manual_seed(0)
    make_config, make = FAMILIES[family]
    config = make_config(
        backbone_config=SwinConfig(
            window_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            image_size=SIDE_PX,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=2000 + len(WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        ),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=QUERIES,
        max_text_len=32,
    )
    built = make(config)
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if weight.dim() > 1 and "norm" not in name and "relative_position" not in name:
                torch.nn.init.kaiming_normal_(weight)
    return built


def shelved(shelf: Shelf, tmp_path: Path, family: str) -> Path:
    """A checkpoint of a family, where the engine finds it."""
    return shelf.put(KEY, model(family), processor(tmp_path))


@every_family
def test_scores_each_photo_by_its_own_boxes(shelf: Shelf, tmp_path: Path, family: str) -> None:
    """A score depends on the photo, and not on the shapes of the others in its batch."""
    shelved(shelf, tmp_path, family)
    scores = holds(engine_of(KEY, **SMALL), photos(5))
    assert np.ptp(np.array(scores, float)) > 0.02


@every_family
@pytest.mark.parametrize("size_px", [(SIDE_PX, SIDE_PX), (SIDE_PX, 60), (50, SIDE_PX)])
def test_says_what_the_library_says(shelf: Shelf, tmp_path: Path, family: str, size_px: tuple[int, int]) -> None:
    """Per prompt: boxes and scores of the library's processor, forward pass and post-processing, on the same canvas."""
    folder = shelved(shelf, tmp_path, family)
    photo = photos(1)[0].resize(size_px)
    theirs = AutoProcessor.from_pretrained(folder)
    inputs = theirs(
        images=photo,
        text=[list(PROMPTS)],
        return_tensors="pt",
        size={"shortest_edge": min(size_px), "longest_edge": SIDE_PX},
        pad_size={"height": SIDE_PX, "width": SIDE_PX},
    )
    assert inputs["pixel_mask"].sum() == size_px[0] * size_px[1]
    with torch.inference_mode():
        out = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()(**inputs)
    engine: Any = engine_of(KEY, **SMALL)
    (ours,) = engine.detect([engine.prepare(photo, Shot())])
    ids = inputs["input_ids"][0].tolist()
    words = theirs.tokenizer.convert_ids_to_tokens(ids)
    everything = out.logits.clone()
    for prompt, own in zip(PROMPTS, (["traffic", "cone"], ["road", "barrier"], ["ex", "##cav", "##ator"]), strict=True):
        # Only this prompt's tokens speak: the library's score of a box is then its score for the prompt.
        out.logits = everything.clone()
        out.logits[..., [i for i in range(out.logits.shape[-1]) if i >= len(words) or words[i] not in own]] = -torch.inf
        (seen,) = theirs.post_process_grounded_object_detection(out, inputs["input_ids"], 0.0, 0.0)
        mine = [i for i, label in enumerate(ours.labels) if label == prompt]
        assert ours.scores[mine] == pytest.approx(seen["scores"].numpy(), abs=1e-4)
        assert ours.boxes[mine] == pytest.approx(seen["boxes"].clamp(0, 1).numpy(), abs=1e-4)
        assert {"".join(text.split()) for text in seen["text_labels"]} == {"".join(own).replace("##", "")}


@every_family
def test_half_precision_says_nearly_the_same(shelf: Shelf, tmp_path: Path, family: str) -> None:
    """bf16 runs, and its scores are near; which queries are looked at may change."""
    shelved(shelf, tmp_path, family)
    pictures = photos(3)
    whole, brain = (
        scores_of(engine_of(KEY, Runtime(max_batch=4, precision=precision), **SMALL), pictures)
        for precision in ("fp32", "bf16")
    )
    assert brain == pytest.approx(whole, abs=1.0)
    assert brain != whole


def test_boxes_are_shares_of_the_photo(shelf: Shelf, tmp_path: Path) -> None:
    """Boxes lie within the photo, one for each query and prompt, where none is too weak."""
    shelved(shelf, tmp_path, "mm-grounding-dino")
    engine: Any = engine_of(KEY, **SMALL)
    for one in engine.detect([engine.prepare(photo, Shot()) for photo in photos(3)]):
        assert one.boxes.shape == (QUERIES * len(PROMPTS), 4)
        assert np.all((one.boxes >= 0) & (one.boxes <= 1))
        assert set(one.labels) == set(PROMPTS)


def test_a_photo_keeps_its_shape() -> None:
    """The longest side fills the square; the rest of it is black."""
    found = sheet(Image.new("RGB", (400, 100), (9, 9, 9)), 80)
    assert found.size_px == (80, 20)
    assert found.pixels.shape == (80, 80, 3)
    assert np.all(found.pixels[:20] == 9)
    assert not found.pixels[20:].any()


def test_the_text() -> None:
    """Small letters, a full stop after each; a span is the words without it."""
    text, spans = text_of(["Traffic Cone", " excavator"], KEY)
    assert text == "traffic cone. excavator."
    assert [text[start:end] for start, end in spans] == ["traffic cone", "excavator"]


@pytest.mark.parametrize(
    ("prompts", "reason"), [({}, "no prompts"), ({"cone. barrel": 1.0}, "without"), ({" ": 1.0}, "must be words")]
)
def test_prompts_that_cannot_be_read_are_named(
    shelf: Shelf, tmp_path: Path, prompts: dict[str, float], reason: str
) -> None:
    """A row that asks for nothing, or for what the model would read as something else, is refused at load."""
    shelved(shelf, tmp_path, "mm-grounding-dino")
    with pytest.raises(ConfigError, match=reason):
        engine_of(KEY, **SMALL | {"prompts": prompts})


def test_too_long_a_text_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    """The library would cut what is over its bound, and the last prompts would never be found."""
    shelved(shelf, tmp_path, "mm-grounding-dino")
    with pytest.raises(ConfigError, match="over 32 tokens"):
        engine_of(KEY, **SMALL | {"prompts": {f"road {'cone ' * i}": 1.0 for i in range(1, 9)}})


def test_another_model_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    """A checkpoint of another open-vocabulary detector has other inputs and outputs."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OwlViTConfig(
        text_config={**small, "vocab_size": 99}, vision_config={**small, "image_size": 32}, projection_dim=16
    )
    shelf.put(KEY, OwlViTForObjectDetection(config), processor(tmp_path))
    with pytest.raises(ConfigError, match="OwlViTForObjectDetection, no Grounding DINO"):
        engine_of(KEY, **SMALL)
