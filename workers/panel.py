"""The models of one tier, on one device: each looks at every photo, and each has its own vote.

Detectors see boxes. Where a depth model sits beside them, a box of an impossible size loses confidence (workers.size);
where a fusion does, it votes on the boxes of all detectors merged.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from PIL import Image

from configs.errors import FleetError
from configs.model import ModelSpec
from configs.profile import Tier, Voter
from routing.decision import calibrate
from routing.messages import Vote
from workers.engines import Engine, Runtime, Shot, build

#: Of each member in order: a raw logit, or None: it abstains.
Scores = tuple[float | None, ...]


class ContractError(FleetError):
    """An engine returned another number of scores than it was given inputs, or one that is not a number."""


class Member(Struct, frozen=True):
    """One model of a panel."""

    spec: ModelSpec
    engine: Engine
    #: Of its vote.
    weight: float = 1.0


class Panel:
    """The models of a tier; a tier of one model is a panel of one.

    Args:
        tier: its name, for votes.
        members: in the order of their votes.
    """

    def __init__(self, tier: str, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self._tier = tier
        self._engines = [member.engine for member in members]
        #: The longest side that a member wants.
        self.input_px = max(member.spec.input_px for member in members)

    def load(self) -> None:
        """Loads all, one after another.

        Raises:
            ConfigError: one cannot be loaded.
        """
        for engine in self._engines:
            engine.load()

    def warm_up(self) -> None:
        """Warms all."""
        for engine in self._engines:
            engine.warm_up()

    def prepare(self, photo: Image.Image, shot: Shot) -> tuple[Any, ...]:
        """The input of each member; None where it abstains."""
        return tuple(engine.prepare(photo, shot) for engine in self._engines)

    def score(self, inputs: Sequence[tuple[Any, ...]]) -> list[Scores]:
        """The scores of each photo, in their order.

        Raises:
            ContractError: an engine returned what is no list of scores for its inputs.
        """
        columns = [self._ask(i, engine, inputs) for i, engine in enumerate(self._engines)]
        return list(zip(*columns, strict=True))

    def votes(self, scores: Scores, latency_ms: float) -> list[Vote]:
        """The votes of one photo: calibrated, without those who abstain."""
        return [
            Vote(self._tier, m.spec.name, calibrate(score, m.spec.calibrator), m.weight, latency_ms)
            for m, score in zip(self.members, scores, strict=True)
            if score is not None
        ]

    def _ask(self, i: int, engine: Engine, inputs: Sequence[tuple[Any, ...]]) -> Sequence[float | None]:
        mine = [prepared[i] for prepared in inputs]
        there = [at for at, one in enumerate(mine) if one is not None]
        if len(there) == len(mine):
            return _checked(engine, mine)
        column: list[float | None] = [None] * len(mine)
        if there:
            for at, score in zip(there, _checked(engine, [mine[at] for at in there]), strict=True):
                column[at] = score
        return column


def _checked(engine: Engine, inputs: Sequence[Any]) -> Sequence[float | None]:
    scores = engine.score(inputs)
    if len(scores) != len(inputs):
        module = type(engine).__module__
        raise ContractError(f"{module} returned {len(scores)} scores for {len(inputs)} inputs")
    if any(score != score for score in scores):  # noqa: PLR0124 - true of NaN only
        raise ContractError(f"{type(engine).__module__} returned a score that is not a number")
    return scores


def build_panel(tier: Tier, specs: Sequence[ModelSpec], device: str) -> Panel:
    """The panel of a tier, not yet loaded.

    Args:
        tier: of a profile.
        specs: of its voters, in order.
        device: as workers.device.pin() says.

    Raises:
        ConfigError: an engine cannot be built.
    """
    runtime = Runtime(device, tier.max_batch, tier.precision, tier.compile)
    voters: tuple[Voter, ...] = tier.voters
    members = [Member(spec, build(spec, runtime), v.weight) for spec, v in zip(specs, voters, strict=True)]
    return Panel(tier.name, members)
