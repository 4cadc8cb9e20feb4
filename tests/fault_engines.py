"""Engines for tests of delivery: they score, abstain or fail as a test says. No model; no profile can name them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from configs.errors import PhotoError
from configs.model import load_model
from routing.messages import Item
from workers.engines import Engine, Shot
from workers.panel import Member, Panel


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

    def prepare(self, photo: Image.Image, shot: Shot) -> Any:  # noqa: ARG002 - the contract's
        """Never called: positions have no pixels."""
        return photo

    def score(self, inputs: Sequence[Any]) -> list[float | None]:
        """One logit a position."""
        self.batches.append(list(inputs))
        self._before()
        return [self._score_of(position) for position in inputs]


class Served(FaultEngine):
    """As of a served model, whose server takes so long over each question, however many it is asked at once."""

    def __init__(self, score_of: Callable[[int], float | None], answer_s: float) -> None:
        super().__init__(score_of)
        self._answer_s = answer_s

    async def ask(self, one: int) -> float | None:
        """A position's logit."""
        await asyncio.sleep(self._answer_s)
        return self._score_of(one)

    def prepare_stored(self, data: bytes | None, shot: Shot) -> Any:  # noqa: ARG002 - the contract's
        """Never called: positions are not stored."""
        return data

    def take_counts(self) -> dict[str, int]:
        """Nothing."""
        return {}


def load_positions(items: Sequence[Item]) -> list[tuple[int] | PhotoError]:
    """A reference's input is its position; those that the item's origin calls bad are bad photos."""
    return [PhotoError("undecodable", "bad on purpose") if item.origin == "bad" else (item.position,) for item in items]


def solo(engine: Engine, tier: str = "first", model: str = "scout-s") -> Panel:
    """A panel of one engine, with a real model's name and calibrator."""
    return Panel(tier, [Member(load_model(model), engine)])
