"""What is night, and what a dark photo becomes."""

from typing import Any

import numpy as np
import pytest

from configs.errors import ConfigError
from tests.engines.checkpoints import spec_of
from workers.engines.night import LEAST_GAMMA, Night, brightened, gamma_of, luma, night_of
from workers.engines.square import Pixels


def grey(tone: int) -> Pixels:
    return np.full((8, 8, 3), tone, np.uint8)


def night(**options: Any) -> Night | None:
    return night_of(spec_of("dfine-x", options=options))


def test_luma_weighs_colours_as_the_eye_does() -> None:
    """Green is most of it, blue the least; white is all of it."""
    tones = {name: grey(0) for name in ("red", "green", "blue")}
    for channel, one in enumerate(tones.values()):
        one[..., channel] = 255
    assert [luma(one) for one in tones.values()] == pytest.approx([76.245, 149.685, 29.07])
    assert luma(grey(255)) == pytest.approx(255)


@pytest.mark.parametrize("tone", [20, 40, 59, 90])
def test_one_tone_lands_on_the_target(tone: int) -> None:
    """The curve is exact for a photo of one tone, to the half step of a byte."""
    assert luma(brightened(grey(tone), gamma_of(tone, 110))) == pytest.approx(110, abs=0.5)


def test_a_scene_ends_between_its_own_luma_and_the_target() -> None:
    """Lights keep theirs, shadows are lifted, and the order of tones stays."""
    scene = grey(15)
    scene[:2] = 240
    after = brightened(scene, gamma_of(luma(scene), 110))
    assert luma(scene) < luma(after) <= 110
    assert 15 < after[7, 0, 0] < after[0, 0, 0] <= 255


def test_black_is_bounded() -> None:
    """A photo without light is no division by nought, and its noise is not stretched without end."""
    assert gamma_of(0, 110) == LEAST_GAMMA
    assert brightened(grey(0), LEAST_GAMMA).max() == 0


def test_a_bright_photo_is_never_darkened() -> None:
    """Above the target nothing is done."""
    assert gamma_of(200, 110) == 1.0
    assert np.array_equal(brightened(grey(200), 1.0), grey(200))


def test_only_the_dark_is_seen() -> None:
    """At the bound it is day."""
    found = Night(below=60, target=110).see(grey(59))
    assert found is not None
    assert luma(found) > 100
    assert Night(below=60, target=110).see(grey(60)) is None


def test_a_row_says_what_night_is() -> None:
    """Without the option there is no night; bounds are the row's, or the module's; the catalogue's are those."""
    assert night() is None
    assert night(night=False, night_below=10) is None
    assert night(night=True) == Night()
    assert night_of(spec_of("night-dfine")) == Night()
    assert night(night=True, night_below=40, night_target=90.5) == Night(40, 90.5)


@pytest.mark.parametrize(
    "wrong", [{"night_below": 0}, {"night_below": "dim"}, {"night_target": 255}, {"night_target": 20}]
)
def test_a_row_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """A bound that is no luma, or a target below it, is named."""
    with pytest.raises(ConfigError, match=r"night_below = .* night_target = "):
        night(night=True, **wrong)
