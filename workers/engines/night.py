"""Night: which photos are dark, and how a detector that learned by daylight may see more in them.

The name that was asked for, ADFNet, is no night detector that can be had; a detector of daylight with its photos
brightened stands in. Neither bound below was tuned on labelled photos.
"""

import math

import numpy as np
from msgspec import Struct

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines.square import Pixels

#: Share of R, G and B in luma. Source: ITU-R BT.601-7, 2.5.1.
LUMA = (0.299, 0.587, 0.114)

#: Luma from which a photo is no night's, where the row has no option ``night_below``; 0 to 255.
BELOW = 60.0

#: Luma that a dark photo is brightened towards, where the row has no option ``night_target``; 0 to 255.
TARGET = 110.0

#: A photo that is black but for noise is not stretched until the noise looks like a scene.
LEAST_GAMMA = 0.25


class Night(Struct, frozen=True):
    """What is night, and what becomes of it."""

    #: Mean luma, 0 to 255: a photo of this or more is no night's.
    below: float = BELOW
    #: Mean luma, 0 to 255, that a dark photo is brightened towards.
    target: float = TARGET

    def see(self, pixels: Pixels) -> Pixels | None:
        """A dark photo, brightened; None: it is not dark."""
        mean = luma(pixels)
        return brightened(pixels, gamma_of(mean, self.target)) if mean < self.below else None


def night_of(spec: ModelSpec) -> Night | None:
    """What a row's options say of night; None: it looks at any photo.

    Raises:
        ConfigError: an option is no luma, or the target is darker than what counts as dark.
    """
    if not spec.options.get("night", False):
        return None
    below, target = (
        spec.options.get(name, default) for name, default in (("night_below", BELOW), ("night_target", TARGET))
    )
    if not (isinstance(below, int | float) and isinstance(target, int | float) and 0 < below <= target < 255):
        raise ConfigError(
            f"model {spec.key!r}: night_below = {below!r} and night_target = {target!r} must be lumas above 0 and "
            "below 255, the second no less than the first"
        )
    return Night(float(below), float(target))


def luma(pixels: Pixels) -> float:
    """The mean luma of a photo, 0 to 255. Source: ITU-R BT.601-7, 2.5.1.

    Args:
        pixels: (height, width, 3), RGB.
    """
    return float(pixels.mean(axis=(0, 1)) @ np.array(LUMA))


def gamma_of(mean: float, target: float) -> float:
    """The exponent that takes a luma to another: (mean / 255) ** gamma = target / 255, from LEAST_GAMMA to 1.

    It is exact for a photo of one tone. Any other ends a little darker, since the curve bends down (Jensen).

    Args:
        mean: of the photo, 0 to 255.
        target: above 0 and below 255.
    """
    if mean >= target:
        return 1.0
    # Half a step of a byte for black, whose logarithm there is none of.
    return max(math.log(target / 255) / math.log(max(mean, 0.5) / 255), LEAST_GAMMA)


def brightened(pixels: Pixels, gamma: float) -> Pixels:
    """A photo through the curve 255 * (x / 255) ** gamma, each of R, G and B alike."""
    curve = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    brighter: Pixels = curve[pixels]
    return brighter
