"""What a detector saw in a photo, and how boxes become one score an image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

#: A box is never certain, and neither is an image without one.
P_MIN = 1e-4

Floats = npt.NDArray[np.float32]


class Detections(Struct, frozen=True):
    """The boxes of one photo that mean roadwork; others an engine leaves out."""

    #: (N, 4): left, top, right, bottom in shares of the photo's width and height, so that no resize changes them.
    boxes: Floats
    #: (N,): 0 to 1, as the model says.
    scores: Floats
    #: N names out of the model's classes or prompts.
    labels: tuple[str, ...]
    #: The model's own raw logit of the whole photo, where it has one that says more than its boxes; else None.
    logit: float | None = None


NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())


def noisy_or(found: Detections, weights: dict[str, float]) -> float:
    """One raw logit an image: the log-odds that at least one box is roadwork, were they independent.

    P = 1 - prod(1 - weight * score), clipped to [P_MIN, 1 - P_MIN]. Boxes of one thing are not independent, so it is a
    score and no probability: the calibrator makes one of it. Source: J. Pearl, Probabilistic Reasoning in Intelligent
    Systems, 1988, 4.3.2.

    Args:
        found: the boxes.
        weights: by label, 0 to 1; a label that is not there counts nothing.
    """
    none = 1.0
    for label, score in zip(found.labels, found.scores.tolist(), strict=True):
        none *= 1 - weights.get(label, 0.0) * score
    p = min(max(1 - none, P_MIN), 1 - P_MIN)
    return math.log(p / (1 - p))


def image_logit(found: Detections, weights: dict[str, float]) -> float:
    """The raw logit of a photo: the model's own where it has one, else the noisy-or of its boxes."""
    return noisy_or(found, weights) if found.logit is None else found.logit


class Detector(ABC):
    """An engine that sees boxes; its score of a photo is their noisy-or.

    Args:
        weights: of each label.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights

    @abstractmethod
    def detect(self, inputs: Sequence[Any]) -> Sequence[Detections]:
        """The boxes of each input, in their order. Runs in the device thread only; raises as Engine.score()."""

    def score(self, inputs: Sequence[Any]) -> list[float | None]:
        """One raw logit a photo, in their order; None for each where no class means roadwork: then nothing is run."""
        return (
            [image_logit(found, self.weights) for found in self.detect(inputs)]
            if self.weights
            else [None] * len(inputs)
        )
