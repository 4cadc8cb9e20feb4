"""Engines for tests of delivery: they score, abstain or fail as a test says. No model; no profile can name them."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from configs.errors import PhotoError
from routing.messages import Item


class FaultEngine:
    """Inputs are positions. ``score_of`` gives a raw logit, None to abstain, or raises; ``before`` runs each batch."""

    def __init__(self, score_of: Callable[[int], float | None], before: Callable[[], None] = lambda: None) -> None:
        self._score_of = score_of
        self._before = before
        self.batches: list[list[int]] = []

    def load(self) -> None:
        """Nothing to load."""

    def warm_up(self) -> None:
        """Nothing to warm."""

    def prepare(self, photo: Image.Image) -> Any:
        """Never called: positions have no pixels."""
        return photo

    def score(self, inputs: Sequence[Any]) -> list[float | None]:
        """One logit a position."""
        self.batches.append(list(inputs))
        self._before()
        return [self._score_of(position) for position in inputs]


def load_positions(items: Sequence[Item]) -> list[int | PhotoError]:
    """A reference's input is its position; those that the item's origin calls bad are bad photos."""
    return [PhotoError("undecodable", "bad on purpose") if item.origin == "bad" else item.position for item in items]
