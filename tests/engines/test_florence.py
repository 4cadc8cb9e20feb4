"""Florence-2 as a detector, beside the library's own way through it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import (  # it comes with transformers
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
)
from transformers import (
    AutoProcessor,
    BartConfig,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Florence2VisionConfig,
    PreTrainedTokenizerFast,
)

from configs.errors import ConfigError
from tests.engines.checkpoints import Shelf, engine_of, photos
from tests.engines.contract import holds
from workers.engines import Runtime, Shot
from workers.engines.florence import BINS, TASK, boxes_of

KEY = "florence-2-large"
SIDE_PX = 32
MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<image>", "<poly>")
WORDS = ("Locate", "in", "the", "image", ".", "traffic", "cone", "excavator")
PLACES = tuple(f"<loc_{i}>" for i in range(BINS))
VOCABULARY = {word: i for i, word in enumerate((*MARKS, *WORDS, *PLACES))}
SMALL: dict[str, Any] = {
    "input_px": SIDE_PX,
    "least_score": 0.0,
    "prompts": {"traffic cone": 0.5, "excavator": 0.2},
    "options": {"new_tokens": 12},
}


def processor() -> Florence2Processor:
    """Of a few words and all places."""
    unknown = {"unk_token": "<unk>"}
    ends = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    words = Tokenizer(models.WordLevel(VOCABULARY, **unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        **ends,
        **unknown,
        additional_special_tokens=["<poly>", *PLACES],
        extra_special_tokens={"image_token": "<image>"},
    )
    images = CLIPImageProcessor(
        size={"height": SIDE_PX, "width": SIDE_PX}, do_center_crop=False, resample=3, image_seq_length=65
    )
    images.image_seq_length = 65
    return Florence2Processor(images, tokenizer, post_processor_config={"description_with_bboxes_or_polygons": {}})


def florence() -> Florence2ForConditionalGeneration:
    """A few layers, weights large enough that the photo matters; each answer begins with a word, as a trained one's."""
    torch.manual_seed(0)
    config = Florence2Config(
        text_config=BartConfig(
            vocab_size=len(VOCABULARY),
            max_position_embeddings=128,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            d_model=32,
            bos_token_id=VOCABULARY["<s>"],
            pad_token_id=VOCABULARY["<pad>"],
            eos_token_id=VOCABULARY["</s>"],
            decoder_start_token_id=VOCABULARY["</s>"],
        ).to_dict(),
        vision_config=Florence2VisionConfig(
            depths=[1],
            patch_size=[7],
            patch_stride=[4],
            patch_padding=[3],
            patch_prenorm=[False],
            embed_dim=[16],
            num_heads=[1],
            num_groups=[1],
            projection_dim=32,
        ).to_dict(),
        image_token_id=VOCABULARY["<image>"],
    )
    model = Florence2ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                torch.nn.init.kaiming_normal_(weight)
    model.generation_config.forced_bos_token_id = VOCABULARY["cone"]
    model.generation_config.no_repeat_ngram_size = 3
    model.generation_config.num_beams = 3
    model.generation_config.early_stopping = True
    return model


def test_scores_each_photo_by_its_own_boxes(shelf: Shelf) -> None:
    """A score depends on the photo, and not on the others in its batch."""
    shelf.put(KEY, florence(), processor())
    scores = holds(engine_of(KEY, **SMALL), photos(5))
    assert np.ptp(np.array(scores, float)) > 0.02


def test_says_what_the_library_says(shelf: Shelf) -> None:
    """Boxes are those of the library's own processor, generation and post-processing; scores those of its words."""
    folder = shelf.put(KEY, florence(), processor())
    photo = photos(1)[0].resize((SIDE_PX, SIDE_PX))
    engine: Any = engine_of(KEY, **SMALL)
    (ours,) = engine.detect([engine.prepare(photo, Shot())])
    theirs = AutoProcessor.from_pretrained(folder)
    model = Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    expected = []
    for prompt in SMALL["prompts"]:
        inputs = theirs(images=photo, text=TASK + prompt, return_tensors="pt")
        answer = model.generate(
            **inputs,
            num_beams=1,
            do_sample=False,
            early_stopping=False,
            max_new_tokens=12,
            output_logits=True,
            return_dict_in_generate=True,
        )
        (text,) = theirs.batch_decode(answer.sequences, skip_special_tokens=False)
        seen = theirs.post_process_generation(text, task=TASK, image_size=(BINS, BINS))[TASK]["bboxes"]
        logs = model.compute_transition_scores(answer.sequences, answer.logits, normalize_logits=True)[0].tolist()
        # An answer is a word, then places only: four a box, until its end.
        for i, (left, top, right, bottom) in enumerate(seen):
            if left < right and top < bottom:
                score = math.exp(sum(logs[1 + 4 * i : 5 + 4 * i]) / 4)
                expected.append((prompt, [left, top, right, bottom], score))
    assert expected
    assert list(ours.labels) == [prompt for prompt, _, _ in expected]
    assert np.floor(ours.boxes * BINS).tolist() == [box for _, box, _ in expected]
    assert ours.scores == pytest.approx([score for _, _, score in expected], abs=1e-4)


def test_half_precision_runs(shelf: Shelf) -> None:
    """In bf16 other words may be chosen; what comes is scores."""
    shelf.put(KEY, florence(), processor())
    engine = engine_of(KEY, Runtime(max_batch=4, precision="bf16"), **SMALL)
    scores = engine.score([engine.prepare(photo, Shot()) for photo in photos(3)])
    assert all(score is not None and math.isfinite(score) for score in scores)


def read(text: str) -> list[tuple[list[int], float]]:
    """The boxes of an answer, in places; each word of it has half the probability of the one before."""
    tokens = [VOCABULARY[word] for word in text.split()]
    logs = [-math.log(2) * i for i in range(len(tokens))]
    places = {VOCABULARY[place]: i for i, place in enumerate(PLACES)}
    marks = frozenset(VOCABULARY[mark] for mark in (*MARKS, *PLACES))
    return [([int(share * BINS) for share in box], score) for box, score in boxes_of(tokens, logs, places, marks)]


def test_a_box_and_its_score() -> None:
    """Places 2 to 5 of the answer: 2 ** -3.5 is the geometric mean of 1/4, 1/8, 1/16 and 1/32."""
    ((box, score),) = read("<s> cone <loc_10> <loc_20> <loc_30> <loc_40> </s>")
    assert box == [10, 20, 30, 40]
    assert score == pytest.approx(2**-3.5)


def test_two_boxes_of_one_name_and_one_of_another() -> None:
    """Boxes follow their name, four places each, until the next name."""
    text = (
        "<s> traffic cone <loc_1> <loc_1> <loc_2> <loc_2> <loc_3> <loc_3> <loc_4> <loc_4> "
        "excavator <loc_5> <loc_5> <loc_6> <loc_6> </s> <pad> <pad>"
    )
    assert [box for box, _ in read(text)] == [[1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]]


@pytest.mark.parametrize(
    "text",
    [
        "<s> </s>",
        "<s> cone </s>",
        "<s> <loc_1> <loc_1> <loc_2> <loc_2> </s>",
        "<s> cone <loc_1> <loc_1> <loc_2>",
        "<s> cone <loc_9> <loc_1> <loc_2> <loc_2> </s>",
        "<s> cone <poly> <loc_1> <loc_1> <loc_2> <loc_2> <loc_3> <loc_3> </s>",
        "<s> cone <loc_1> <loc_1> excavator <loc_2> <loc_2> </s>",
    ],
)
def test_what_is_no_box(text: str) -> None:
    """Nothing, no place, no name, too few places, right of its right side, an outline, and two halves."""
    assert read(text) == []


def test_a_row_without_prompts_is_refused(shelf: Shelf) -> None:
    """It would have nothing to ask."""
    shelf.put(KEY, florence(), processor())
    with pytest.raises(ConfigError, match="no prompts"):
        engine_of(KEY, **SMALL | {"prompts": {}})


def test_another_size_is_refused(shelf: Shelf) -> None:
    """The number of a photo's tokens is the checkpoint's."""
    shelf.put(KEY, florence(), processor())
    with pytest.raises(ConfigError, match="takes 32 px, not input_px = 64"):
        engine_of(KEY, **SMALL | {"input_px": 64})


@pytest.mark.parametrize("wrong", [7, "many", 9.5])
def test_too_short_an_answer_is_refused(wrong: Any) -> None:
    """An answer that cannot hold one box is a mistake in the row."""
    with pytest.raises(ConfigError, match="new_tokens"):
        engine_of(KEY, **SMALL | {"options": {"new_tokens": wrong}})
