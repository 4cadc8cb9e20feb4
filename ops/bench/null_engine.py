"""An engine without a model, photos without pixels: for measuring delivery only. No profile can name it."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from routing.messages import Item
from workers.engines import Shot

#: One photo in so many climbs from the first tier to the second.
ESCALATES_EVERY = 5

_SURE, _UNSURE = 6.0, 0.0


def label_of(position: int) -> int:
    """The truth of a reference: one in three is roadwork."""
    return int(position % 3 == 0)


def score_of(position: int, last_tier: bool) -> float:
    """The raw logit of a reference: right, and unsure in the first tier for one in ESCALATES_EVERY."""
    if not last_tier and position % ESCALATES_EVERY == 0:
        return _UNSURE
    return _SURE if label_of(position) else -_SURE


class NullEngine:
    """Scores a reference by its position."""

    def __init__(self, *, last_tier: bool) -> None:
        # Asked for by position % 15: both conditions in one look-up.
        self._scores = [score_of(position, last_tier) for position in range(15)]

    def load(self) -> None:
        """Nothing to load."""

    def warm_up(self) -> None:
        """Nothing to warm."""

    def prepare(self, photo: Image.Image, shot: Shot) -> Any:  # noqa: ARG002 - the contract's
        """Never called: references have no pixels."""
        return photo

    def score(self, inputs: Sequence[Any]) -> list[float | None]:
        """One logit a position."""
        scores = self._scores
        return [scores[position % 15] for position in inputs]


def load_references(items: Sequence[Item]) -> list[tuple[int]]:
    """A reference's input is its position: one for the one model."""
    return [(item.position,) for item in items]
