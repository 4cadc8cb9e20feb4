"""The renderer of labelled scenes."""

from random import Random

import numpy as np
import pytest

from producers.distractors import ORDINARY
from producers.pencil import Painter
from producers.scenes import DEMO_SEEDS, TRAINING_SEEDS, render
from producers.sprites import ROADWORK


def test_a_seed_gives_the_same_scene_each_time() -> None:
    """Rendering a seed twice gives the same pixels and label; another seed gives other pixels."""
    first, label = render(42)
    again, same = render(42)
    other, _ = render(43)
    assert (np.asarray(first) == np.asarray(again)).all()
    assert label == same
    assert not (np.asarray(first) == np.asarray(other)).all()


@pytest.mark.parametrize("size_px", [(640, 360), (224, 224), (320, 480)])
def test_a_scene_is_an_rgb_picture_of_the_size_asked_for(size_px: tuple[int, int]) -> None:
    """Any size works, wide, square and high."""
    image, label = render(7, size_px)
    assert (image.mode, image.size) == ("RGB", size_px)
    assert label in {0, 1}


def test_half_of_the_scenes_show_roadwork() -> None:
    """Of 200 demo seeds between 80 and 120 carry label 1."""
    assert 80 <= sum(render(seed, (64, 48))[1] for seed in range(200)) <= 120


def test_demo_seeds_are_never_trained_on() -> None:
    """The two ranges of seeds share none."""
    assert DEMO_SEEDS.stop <= TRAINING_SEEDS.start or TRAINING_SEEDS.stop <= DEMO_SEEDS.start


@pytest.mark.parametrize("painter", [*ROADWORK, *ORDINARY], ids=lambda painter: painter.__name__)
@pytest.mark.parametrize("height_px", [5, 40, 300])
def test_every_painter_fills_the_height_asked_for(painter: Painter, height_px: int) -> None:
    """A sprite has the asked height, transparency, and something to see."""
    sprite = painter(Random(3), height_px)
    assert sprite.mode == "RGBA"
    assert sprite.height == height_px
    assert np.asarray(sprite)[..., 3].max() > 100
