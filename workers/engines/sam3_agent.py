"""SAM 3 led by a vision-language model: that one names what to look for, SAM 3 finds it, the first confirms the finds.

No checkpoint of its own: SAM 3 runs here, the other model is served (workers.served). The idea of the loop is the SAM 3
authors' agent, which asks for masks of a query; ours asks which roadwork is there and how sure that is.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, TypeVar

import msgspec
import structlog
from msgspec import Meta, Struct
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import EngineAwayError, Runtime, Shot
from workers.engines.agent_dialogue import (
    AGAIN,
    Box,
    confirm_question,
    name_question,
    numbered,
    numbers_in,
    phrases_in,
)
from workers.engines.sam3 import Sam3, Sight, presence_of
from workers.engines.square import Pixels, square
from workers.engines.torch_device import parts
from workers.served import RefusedError, Served, url_of
from workers.turn import Turn

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Share of its weight that a presence has which nobody confirmed, so that photos without roadwork still differ.
DOUBT = 0.05
#: Boxes of one photo that are shown at most: more numbers than this cannot be told apart.
MAX_BOXES = 12

JPEG_QUALITY = 90


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """What a row may say."""

    #: The other model's name at its server.
    served_model: str
    #: Its server; NATIX_FLEET_VLM_URL goes first.
    url: str = ""
    #: For one question, with its retries. A photo has up to 4 of them a round, and the tier's stall_s must outlast all.
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    #: Of naming, finding and confirming.
    rounds: Annotated[int, Meta(ge=1)] = 2
    #: Named at most in one round.
    max_phrases: Annotated[int, Meta(ge=1)] = 8
    #: Of an answer; a model that thinks aloud first needs thousands.
    max_tokens: Annotated[int, Meta(ge=1)] = 256
    #: Photos that are asked about at once.
    concurrency: Annotated[int, Meta(ge=1)] = 16


class Input(Struct, frozen=True):
    """One photo, for both models."""

    pixels: Pixels
    photo: Image.Image


class Case:
    """What is known of one photo so far."""

    def __init__(self, photo: Image.Image) -> None:
        self.photo = photo
        #: What was looked for, and what was seen of it.
        self.sights: dict[str, Sight] = {}
        #: To look for in this round.
        self.wanted: list[str] = []
        self.confirmed: set[str] = set()
        #: Nothing more is asked.
        self.closed = False
        #: An answer could not be read, twice: no vote.
        self.unreadable = False

    def hear_names(self, named: Sequence[str] | None, prompts: Sequence[str]) -> None:
        """Takes what to look for next.

        Args:
            named: the other model's phrases; None: it could not be understood.
            prompts: the row's, looked for when the first answer names nothing: at the size that the other model sees
                photos in, small things are overlooked.
        """
        if named is None:
            self.closed = self.unreadable = True
            return
        if not named and not self.sights:
            named = prompts
        self.wanted = [phrase for phrase in named if phrase not in self.sights]
        self.closed = not self.wanted

    def hear_numbers(self, boxes: Sequence[Box], numbers: set[int] | None) -> None:
        """Takes which boxes are roadwork, by number from 1; None: it could not be understood."""
        if numbers is None:
            self.closed = self.unreadable = True
            return
        self.confirmed = {boxes[number - 1].phrase for number in numbers}
        self.closed = bool(self.confirmed)

    def boxes(self) -> list[Box]:
        """What this round found, the surest first."""
        found = [
            Box(phrase, tuple(corners), score)
            for phrase in self.wanted
            for corners, score in zip(
                self.sights[phrase].boxes.tolist(), self.sights[phrase].scores.tolist(), strict=True
            )
        ]
        return sorted(found, key=lambda box: -box.score)[:MAX_BOXES]

    def score(self, weights: dict[str, float]) -> float | None:
        """One raw logit: the noisy-or of the presences that were confirmed, else a DOUBT of all; None: it abstains.

        Args:
            weights: of the row's prompts; what the other model named by itself has 1.0.
        """
        if self.unreadable:
            return None
        share = 1.0 if self.confirmed else DOUBT
        labels = [phrase for phrase in self.sights if not self.confirmed or phrase in self.confirmed]
        shares = {phrase: share * weights.get(phrase, 1.0) for phrase in labels}
        return presence_of([self.sights[phrase] for phrase in labels], labels, shares)


class Engine:
    """One SAM 3 on one device, and a client of the model that leads it."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._sam = Sam3(spec, runtime)
        try:
            self._options = msgspec.convert(spec.options, Options)
        except msgspec.ValidationError as error:
            raise ConfigError(f"model {spec.key!r}: options: {error}") from None

    def load(self) -> None:
        """Loads SAM 3; a server that is away may come later, one that has not the model is refused.

        Raises:
            ConfigError: the weights are missing, the row has no prompts, or no server is named or not the right one.
        """
        if not self._spec.prompts:
            raise ConfigError(f"model {self._spec.key!r}: its row has no prompts: name what to look for in any case")
        name = self._options.served_model
        self._served = Served(url_of(self._options.url), name, self._options.timeout_s)
        try:
            names = self._served.names()
        except (EngineAwayError, RefusedError) as error:
            log.warning("vlm_away", model=self._spec.key, reason=str(error))
            names = []
        if names and name not in names:
            raise ConfigError(f"model {self._spec.key!r}: {self._served.url} serves {', '.join(names)}, not {name!r}")
        self._sam.load()
        # Looked for where the other model names nothing: one that is too long is found out now.
        self._sam.read(list(self._spec.prompts))

    def warm_up(self) -> None:
        """Looks for a full batch of phrases in a full batch of grey; the other model is its server's to warm."""
        many = self._runtime.max_batch
        grey = square(Image.new("RGB", (self._spec.input_px,) * 2, (127, 127, 127)), self._spec.input_px)
        phrases = self._sam.read(list(self._spec.prompts)[:1])
        self._sam.look(self._sam.view([grey] * many), phrases, [(photo, 0) for photo in range(many)])

    def prepare(self, photo: Image.Image, shot: Shot) -> Input:  # noqa: ARG002 - the contract's
        """The square for SAM 3, and the photo as the other model sees it."""
        return Input(square(photo, self._spec.input_px), photo)

    def score(self, inputs: Sequence[Input]) -> list[float | None]:
        """One raw logit a photo; None: the other model could not be understood.

        What it names is looked for; the boxes are shown to it, numbered; what it confirms counts, by SAM 3's presence.

        Raises:
            EngineAwayError: the server is away or busy.
            DeviceMemoryError: there is no memory for so many at once.
            RefusedError: the server will not answer about one of these photos.
        """
        scores: list[float | None] = []
        for part in parts(inputs, self._runtime.max_batch):
            cases = [Case(one.photo) for one in part]
            views = None
            for _ in range(self._options.rounds):
                self._together(self._name, [case for case in cases if not case.closed])
                if all(case.closed for case in cases):
                    break
                if views is None:
                    views = self._sam.view([one.pixels for one in part])
                phrases = sorted({phrase for case in cases if not case.closed for phrase in case.wanted})
                pairs = [
                    (at, phrases.index(phrase))
                    for at, case in enumerate(cases)
                    if not case.closed
                    for phrase in case.wanted
                ]
                sights = self._sam.look(views, self._sam.read(phrases), pairs)
                for (at, phrase), sight in zip(pairs, sights, strict=True):
                    cases[at].sights[phrases[phrase]] = sight
                self._together(self._confirm, [case for case in cases if not case.closed and case.boxes()])
            scores += [case.score(self._spec.prompts) for case in cases]
        return scores

    def _name(self, case: Case) -> None:
        """Asks what to look for next."""
        most = self._options.max_phrases
        named = self._ask(case.photo, name_question(most, list(case.sights)), partial(phrases_in, most=most))
        case.hear_names(named, list(self._spec.prompts))

    def _confirm(self, case: Case) -> None:
        """Asks which of this round's boxes are roadwork."""
        boxes = case.boxes()
        read = partial(numbers_in, most=len(boxes))
        case.hear_numbers(boxes, self._ask(numbered(case.photo, boxes), confirm_question(boxes), read))

    def _ask(self, photo: Image.Image, question: str, read: Callable[[str], T | None]) -> T | None:
        """The answer as ``read`` understands it, at the second attempt if need be; None: not even then."""
        turns = [Turn("user", question, _jpeg(photo))]
        answer = self._served.ask(turns, self._options.max_tokens)
        found = read(answer.text)
        if found is None:
            turns += [Turn("assistant", answer.text), Turn("user", AGAIN)]
            answer = self._served.ask(turns, self._options.max_tokens)
            found = read(answer.text)
        if found is None:
            log.info("vlm_unreadable", model=self._spec.key, answer=answer.text[:200], finish=answer.finish)
        return found

    def _together(self, ask: Callable[[Case], None], cases: Sequence[Case]) -> None:
        """Asks about many photos at once: each round trip is slow, and the server fills its own batches."""
        if not cases:
            return
        pool = ThreadPoolExecutor(min(self._options.concurrency, len(cases)), thread_name_prefix="vlm")
        try:
            list(pool.map(ask, cases))
        finally:
            # After an error those not yet asked need no answer.
            pool.shutdown(cancel_futures=True)


def _jpeg(photo: Image.Image) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
