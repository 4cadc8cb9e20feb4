"""Operations of a vision-language model's answer: its parameters against the catalogue, its terms by hand."""

import msgspec
import pytest

from configs.model import catalogue
from ops.bench.vlm_arithmetic import SHAPES, Shape


@pytest.mark.parametrize("name", ["4b", "8b", "32b"])
def test_the_shape_is_the_row_s(name: str) -> None:
    """Biases and norms are left out: less than a thousandth."""
    shape = SHAPES[name]
    assert shape.parameters == pytest.approx(catalogue()[shape.key].params, rel=1e-3)


def test_terms_by_hand() -> None:
    """A shape so small that each term fits in a head."""
    shape = Shape(
        key="none",
        layers=3,
        hidden=5,
        intermediate=7,
        heads=2,
        kv_heads=1,
        head_dim=4,
        vocab=11,
        vision_layers=2,
        vision_hidden=6,
        vision_intermediate=9,
        deepstack=(0,),
        vision_positions=4,
    )
    # q and o: 5 by 8 each; k and v: 5 by 4 each; three matrices of 5 by 7.
    assert shape.language_matrices == 3 * (40 + 40 + 20 + 20 + 105)
    # Scores and their use: 8 numbers of all heads, 2 operations, 2 products; 10 pairs of 4 tokens see each other.
    assert shape.language_flop(4) == 2 * 675 * 4 + 3 * 2 * 2 * 8 * 10 + 2 * 55
    assert shape.vision_matrices == 2 * (4 * 36 + 2 * 54) + 16 * 16 * 2 * 3 * 6
    # Four patches of 6 side by side go through 24 by 24 and 24 by 5, at the end and once before.
    assert shape.merger_matrices == 2 * (24 * 24 + 24 * 5)
    # 64 pixels: 4 by 4 patches, 4 tokens.
    assert shape.vision_flop(64) == 2 * 9720 * 16 + 2 * 1392 * 4 + 2 * 2 * 2 * 6 * 16 * 16
    assert shape.flop(4, 64) == shape.language_flop(4) + shape.vision_flop(64)


def test_the_rule_of_thumb_is_the_one_that_was_used() -> None:
    """4.0 and 0.41 billion parameters, 112 and 463 tokens: 1.06 and 5.0 TFLOP."""
    shape = SHAPES["4b"]
    assert shape.flop_by_parameters(112, 224) / 1e12 == pytest.approx(1.06, abs=0.01)
    assert shape.flop_by_parameters(463, 640) / 1e12 == pytest.approx(5.05, abs=0.05)


def test_what_is_counted_is_less() -> None:
    """Embeddings count for nothing, mergers for a quarter; attention, with the square, gives some of it back."""
    shape = SHAPES["4b"]
    assert shape.flop(112, 224) / shape.flop_by_parameters(112, 224) == pytest.approx(0.89, abs=0.01)
    assert shape.flop(463, 640) / shape.flop_by_parameters(463, 640) == pytest.approx(0.94, abs=0.01)


def test_config_says_what_is_counted() -> None:
    """The tied head is said where both readers look for it."""
    config = msgspec.to_builtins(SHAPES["4b"].config())
    assert config["text_config"]["num_hidden_layers"] == 36
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is True
    assert sum(config["text_config"]["rope_parameters"]["mrope_section"]) * 2 == SHAPES["4b"].head_dim
