"""The models of one tier, on one device: each looks at every photo, and each has its own vote.

Detectors see boxes. Where a depth model sits beside them, a box of an impossible size loses confidence (workers.size);
where a fusion does, it votes on the boxes of all detectors merged.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct
from PIL import Image

from configs.errors import ConfigError, FleetError
from configs.model import ModelSpec
from configs.profile import Tier, Voter
from routing.decision import calibrate
from routing.messages import Vote
from workers.detections import Detections, image_logit
from workers.engines import DETECTORS, AskedEngine, DeviceMemoryError, Engine, Runtime, Shot, build
from workers.size import weigh

T = TypeVar("T")

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
        #: Of each detector, what its labels weigh; empty for others, and for one that knows nothing of roadwork.
        self._weights = [_weights(member.spec) for member in members]
        #: Of a tier whose model is served: it is asked about many photos at once (workers.fanout).
        self._asked = self._engines[0] if len(members) == 1 and isinstance(self._engines[0], AskedEngine) else None
        self._depth = self._place_of("depth")
        self._fusion = self._place_of("fusion")
        #: The longest side that a member wants.
        self.input_px = max(member.spec.input_px for member in members)

    @property
    def asked(self) -> bool:
        """Whether its model is served: then ask() and prepare_stored() do in place of score() and prepare()."""
        return self._asked is not None

    def load(self) -> None:
        """Loads all, one after another.

        Raises:
            ConfigError: one cannot be loaded.
        """
        for engine in self._engines:
            engine.load()

    def warm_up(self) -> None:
        """Warms all, each at a full batch.

        Raises:
            ConfigError: the device has no memory for so many photos.
        """
        for member in self.members:
            try:
                member.engine.warm_up()
            except DeviceMemoryError as error:
                key = member.spec.key
                raise ConfigError(
                    f"tier {self._tier!r}: the device has no memory for max_batch photos of model {key!r}: {error}"
                ) from None

    def prepare(self, photo: Image.Image, shot: Shot) -> tuple[Any, ...]:
        """The input of each member, None where it abstains; last what is known of the photo."""
        return (*(engine.prepare(photo, shot) for engine in self._engines), shot)

    def prepare_stored(self, data: bytes | None, shot: Shot) -> tuple[Any, ...]:
        """The input of a served model from stored bytes. Raises PhotoError."""
        return (self._the_asked.prepare_stored(data, shot), shot)

    async def ask(self, one: tuple[Any, ...]) -> Scores:
        """The score of one photo by a served model. Raises what its engine does."""
        score = await self._the_asked.ask(one[0])
        _check(self._engines[0], [score], [one])
        return (score,)

    def take_counts(self) -> dict[str, int]:
        """What its engine counts, since it was last asked."""
        return self._asked.take_counts() if self._asked else {}

    def score(self, inputs: Sequence[tuple[Any, ...]]) -> list[Scores]:
        """The scores of each photo, in their order.

        Raises:
            ContractError: an engine returned what is no list of scores for its inputs.
        """
        depths = self._depths(inputs)
        #: Of each photo, what each detector saw.
        seen: list[list[Detections]] = [[] for _ in inputs]
        columns: list[Sequence[float | None]] = [()] * len(self._engines)
        # The fusion after all others, wherever it stands.
        for i in sorted(range(len(columns)), key=lambda i: i == self._fusion):
            engine = self._engines[i]
            if i == self._fusion:
                columns[i] = engine.score(seen)
            elif self._weights[i]:
                columns[i] = self._look(i, inputs, depths, seen)
            else:
                columns[i] = self._ask(i, engine.score, inputs)
            _check(engine, columns[i], inputs)
        return list(zip(*columns, strict=True))

    def votes(self, scores: Scores, latency_ms: float) -> list[Vote]:
        """The votes of one photo: calibrated, without those who abstain."""
        return [
            Vote(self._tier, m.spec.name, calibrate(score, m.spec.calibrator), m.weight, latency_ms)
            for m, score in zip(self.members, scores, strict=True)
            if score is not None
        ]

    @property
    def _the_asked(self) -> AskedEngine:
        if self._asked is None:
            raise TypeError("this panel's models are not served")
        return self._asked

    def _place_of(self, engine: str) -> int | None:
        return next((i for i, member in enumerate(self.members) if member.spec.engine == engine), None)

    def _depths(self, inputs: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """The depth map of each photo, in metres; None where it is unknown; empty without a depth model."""
        if self._depth is None:
            return []
        engine: Any = self._engines[self._depth]
        return self._ask(self._depth, engine.measure, inputs)

    def _look(
        self, i: int, inputs: Sequence[tuple[Any, ...]], depths: Sequence[Any], seen: list[list[Detections]]
    ) -> list[float | None]:
        """A detector's scores, its boxes held against the depth; what it saw is kept for the fusion."""
        detector: Any = self._engines[i]
        column: list[float | None] = []
        for at, boxes in enumerate(self._ask(i, detector.detect, inputs)):
            if boxes is None:
                column.append(None)
                continue
            shot: Shot = inputs[at][-1]
            known = bool(depths) and depths[at] is not None
            found = weigh(boxes, depths[at], shot.size_px, shot.focal_px) if known else boxes
            column.append(image_logit(found, self._weights[i]))
            seen[at].append(found)
        return column

    def _ask(
        self, i: int, ask: Callable[[Sequence[Any]], Sequence[T]], inputs: Sequence[tuple[Any, ...]]
    ) -> Sequence[T | None]:
        """What member ``i`` says of the photos that it has an input of; None of the others."""
        mine = [prepared[i] for prepared in inputs]
        there = [at for at, one in enumerate(mine) if one is not None]
        if len(there) == len(mine):
            return ask(mine)
        said: list[T | None] = [None] * len(mine)
        if there:
            asked = [mine[at] for at in there]
            answers = ask(asked)
            _check(self._engines[i], answers, asked)
            for at, answer in zip(there, answers, strict=True):
                said[at] = answer
        return said


def _weights(spec: ModelSpec) -> dict[str, float]:
    return spec.classes or spec.prompts if spec.engine in DETECTORS else {}


def _check(engine: Engine, said: Sequence[Any], inputs: Sequence[Any]) -> None:
    if len(said) != len(inputs):
        module = type(engine).__module__
        raise ContractError(f"{module} returned {len(said)} scores for {len(inputs)} inputs")
    if any(one != one for one in said if isinstance(one, float)):  # noqa: PLR0124 - true of NaN only
        raise ContractError(f"{type(engine).__module__} returned a score that is not a number")


def build_panel(tier: Tier, specs: Sequence[ModelSpec], device: str, url: str = "") -> Panel:
    """The panel of a tier, not yet loaded.

    Args:
        tier: of a profile.
        specs: of its voters, in order.
        device: as workers.device.pin() says.
        url: of its server, where it has one.

    Raises:
        ConfigError: an engine cannot be built.
    """
    if url and len(specs) > 1:
        raise ConfigError(f"tier {tier.name!r}: a served model has a tier of its own, and no panel")
    runtime = Runtime(
        device,
        tier.max_batch,
        tier.precision,
        tier.compile,
        url,
        tier.server,
        waits=tier.away == "wait",
        sleeps=tier.residency == "sleep",
    )
    voters: tuple[Voter, ...] = tier.voters
    members = [Member(spec, build(spec, runtime), v.weight) for spec, v in zip(specs, voters, strict=True)]
    return Panel(tier.name, members)
