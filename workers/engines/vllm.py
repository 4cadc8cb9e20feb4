"""A vision-language model that vLLM serves: its first word, yes or no, as a score.

The model runs in a process of its own (ops.vllm_server); here are its client and the reading of its answers. How the
server can be asked is found out in workers.asking.
"""

import asyncio
import threading
import time
from collections.abc import Sequence

import structlog
from PIL import Image

from configs.errors import ConfigError, ServerError
from configs.model import ModelSpec
from configs.serving import Serving
from workers.answer import Choice, Place, answer_place
from workers.asking import END, SLACK_TOKENS, Asking, Finding, choice_of
from workers.asleep import AsleepError, Sleep
from workers.background import wait_for
from workers.deadline import within
from workers.engines import EngineAwayError, Runtime, Shot
from workers.question import Question, Wording
from workers.sent import sent, sent_stored
from workers.served import MistakenError, RefusedError, Served, url_of
from workers.yes_no import Reading, read

log = structlog.get_logger(__name__)

#: While a server is not there yet, it is looked for this often, and that is said this often.
LOOK_S, SAY_S = 0.5, 30.0
#: Where photos go on without a server, they are held no longer than this for one that is not there at the start.
HOLD_S = 30.0
THINK = "<think>"


class Engine:
    """One model of one server. ask() runs in the background loop, for as many photos at once as the tier allows."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._server = runtime.server
        self._serving = spec.serving or Serving()
        self._asking: Asking | None = None
        #: When it is to be said again why photos have no vote.
        self._say_s: dict[str, float] = {}
        #: What became of the questions since the last take_counts().
        self._counts: dict[str, int] = {}
        self._counting = threading.Lock()

    def load(self) -> None:
        """Waits for the server, and finds out how it can be asked.

        That is left to the first photo if it sleeps, or is not there within HOLD_S while the tier abstains without it.

        Raises:
            ConfigError: no server is named, it does not serve this model, or not to us, or gives no log-probabilities.
            ServerError: it did not come up within ``start_within_s``.
        """
        url = self._runtime.url or url_of("")
        self._served = Served(url, self._spec.key, self._server.timeout_s, self._server.in_flight)
        self._sleep = Sleep(self._served)
        photo = self.prepare(Image.new("RGB", (64, 64), (127, 127, 127)), Shot())
        self._finding = Finding(self._spec, self._served, photo)
        goes_on = not self._runtime.waits and self._server.start_within_s > HOLD_S
        until_s = said_s = time.monotonic()
        until_s += HOLD_S if goes_on else self._server.start_within_s
        while True:
            try:
                wait_for(self._come_up(until_s - time.monotonic()))
                break
            except MistakenError as mistaken:
                raise ConfigError(f"model {self._spec.key!r}: {mistaken}") from None
            except (EngineAwayError, RefusedError) as away:
                now_s = time.monotonic()
                if now_s > until_s and goes_on:
                    log.warning("work begins without a server", model=self._spec.key, url=url, reason=str(away))
                    # It may have come since: the first photo asks it, whatever the looks in vain had to say.
                    self._served.breaker.answered()
                    break
                if now_s > until_s:
                    raise ServerError(f"model {self._spec.key!r}: its server did not come up: {away}") from None
                if now_s >= said_s:
                    log.info("waiting for a server", model=self._spec.key, url=url, reason=str(away))
                    said_s = now_s + SAY_S
            time.sleep(LOOK_S)

    def warm_up(self) -> None:
        """Nothing: finding out how to ask was the first question."""

    def prepare(self, photo: Image.Image, shot: Shot) -> bytes:  # noqa: ARG002 - the contract's
        """The photo as it travels: JPEG, at most ``sent_px`` on its longest side, in base64."""
        return sent(photo, self._server.sent_px)

    def prepare_stored(self, data: bytes | None, shot: Shot) -> bytes:  # noqa: ARG002 - the contract's
        """As prepare(), from the stored bytes: they are decoded only if they must be shrunk.

        Raises:
            PhotoError: there are none, or they are no JPEG.
        """
        return sent_stored(data, self._server.sent_px)

    def score(self, inputs: Sequence[bytes]) -> list[float | None]:
        """One score a photo; None: it abstains. Raises as ask()."""
        return list(wait_for(self._all(inputs)))

    async def ask(self, photo: bytes) -> float | None:
        """The log-odds of yes against no, or None: the model would say something else, refuses, or is away.

        Raises:
            EngineAwayError: the server sleeps; or it is away, and the tier's items wait for it.
        """
        try:
            reading = await self._reading_awake(photo)
        except RefusedError as error:
            self._say("a photo was refused", error)
            return self._no_vote("refused")
        except AsleepError:
            raise
        except EngineAwayError as away:
            if self._runtime.waits:
                raise
            # The breaker says when it opens, and not every failure opens it.
            self._say("photos go on without a vote", away)
            return self._no_vote("away")
        if reading is None:
            return self._no_vote("unreadable")
        if reading.outside is not None:
            self._count("outside_ppm", round(1e6 * reading.outside))
        if (reading.outside or 0) > self._server.max_outside:
            return self._no_vote("outside")
        return reading.score

    async def reading(self, photo: bytes) -> Reading | None:
        """The answer with what it leaves out; None: it cannot be read. Raises EngineAwayError, RefusedError."""
        if self._asking is None:
            self._asking = await self._finding.find_late()
        asking = self._asking
        wording = asking.wording
        budget = self._serving.thinking_tokens
        if not budget:
            place = next(iter((await self._choice(wording.at_once(), photo)).places), None)
        elif asking.end_of_thoughts >= 0:
            choice = await self._choice(wording.after_thoughts(budget, SLACK_TOKENS), photo)
            place = answer_place(choice.places, asking.end_of_thoughts)
        else:
            place = await self._think_then_answer(wording, budget, photo)
        return read(place.logprobs(), wording.words, wording.way) if place else None

    def _say(self, what: str, cause: Exception) -> None:
        """Now and then: each photo is counted."""
        if (now_s := time.monotonic()) >= self._say_s.get(what, 0.0):
            log.warning(what, model=self._spec.key, reason=str(cause))
            self._say_s[what] = now_s + SAY_S

    def take_counts(self) -> dict[str, int]:
        """What became of questions since this was last asked: votes that were none, by reason; and outside_ppm.

        That is the sum of the probabilities of everything but yes and no, in millionths, where they are known.
        """
        with self._counting:
            counts, self._counts = self._counts, {}
        return counts

    @property
    def asking(self) -> Asking:
        """How the server is asked.

        Raises:
            EngineAwayError: it was never there and awake yet.
        """
        if self._asking is None:
            raise EngineAwayError(f"{self._served.url} was not asked anything yet")
        return self._asking

    async def _reading_awake(self, photo: bytes) -> Reading | None:
        """As reading(), in the time for one photo, unless the server sleeps. Raises AsleepError too."""
        if self._runtime.sleeps:
            await self._sleep.see_awake()
        try:
            with within(self._server.timeout_s):
                return await self.reading(photo)
        except EngineAwayError:
            if self._runtime.sleeps:
                # It may have fallen asleep with this question in hand.
                await self._sleep.look()
            raise

    async def _all(self, inputs: Sequence[bytes]) -> list[float | None]:
        return await asyncio.gather(*map(self.ask, inputs))

    async def _think_then_answer(self, wording: Wording, budget: int, photo: bytes) -> Place | None:
        thoughts = await self._choice(wording.think(budget, END), photo)
        text = thoughts.message.text.removeprefix(THINK).strip()
        said = wording.conclude(f"{THINK}\n{text}\n{END}\n\n")
        return answer_place((await self._choice(said, photo)).places)

    async def _choice(self, question: Question, photo: bytes) -> Choice:
        return await choice_of(self._served, question, photo)

    async def _come_up(self, within_s: float) -> None:
        """Sees what the server has, and how it can be asked; if it sleeps, a question would wait until it wakes."""
        with within(within_s):
            await self._finding.see()
            if self._runtime.sleeps:
                try:
                    await self._sleep.look()
                except AsleepError as asleep:
                    log.info("a server sleeps, and is asked later", model=self._spec.key, reason=str(asleep))
                    return
            self._asking = await self._finding.find()

    def _no_vote(self, why: str) -> float | None:
        self._count(f"no_vote_{why}", 1)
        return None

    def _count(self, name: str, by: int) -> None:
        with self._counting:
            self._counts[name] = self._counts.get(name, 0) + by
