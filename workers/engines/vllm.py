"""A vision-language model that vLLM serves: its first word, yes or no, as a score.

The model runs in a process of its own (ops.vllm_server); here are its client and the reading of its answers. How the
server can be asked is found out by asking it, not by its release.
"""

import asyncio
import threading
import time
from collections.abc import Sequence

import msgspec
import structlog
from msgspec import Struct
from PIL import Image

from configs.errors import ConfigError, ServerError
from configs.model import ModelSpec
from configs.prompt import load_prompt
from configs.serving import Serving
from workers.answer import Choice, Completion, Place, answer_place
from workers.asleep import AsleepError, Sleep
from workers.background import wait_for
from workers.deadline import within
from workers.engines import EngineAwayError, Runtime, Shot
from workers.question import ANSWER_TOKENS, Question, Wording
from workers.sent import sent, sent_stored
from workers.served import MistakenError, RefusedError, Served, url_of
from workers.yes_no import NO, YES, Reading, Words, read, works

log = structlog.get_logger(__name__)

#: While a server is not there yet, it is looked for this often, and that is said this often.
LOOK_S, SAY_S = 0.5, 30.0
#: Tokens after the thoughts, within which the answer must come.
SLACK_TOKENS = 16
THINK, END = "<think>", "</think>"
#: A first question that shows whether the server keeps a budget of thoughts.
PROBE_BUDGET = 4


class Asking(Struct, frozen=True):
    """What was found out about a server."""

    wording: Wording
    #: The token that ends thoughts; -1: the server keeps no budget, and a thinking model is asked twice.
    end_of_thoughts: int = -1


class Engine:
    """One model of one server. ask() runs in the background loop, for as many photos at once as the tier allows."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime
        self._server = runtime.server
        self._serving = spec.serving or Serving()
        self._prompt = load_prompt(self._serving.prompt)
        self._asking: Asking | None = None
        self._finding = asyncio.Lock()
        #: What became of the questions since the last take_counts().
        self._counts: dict[str, int] = {}
        self._counting = threading.Lock()

    def load(self) -> None:
        """Waits for the server, and finds out how it can be asked; of one that sleeps, when the first photo comes.

        Raises:
            ConfigError: no server is named, it does not serve this model, or not to us, or gives no log-probabilities.
            ServerError: it did not come up within ``start_within_s``.
        """
        url = self._runtime.url or url_of("")
        self._served = Served(url, self._spec.key, self._server.timeout_s, self._server.in_flight)
        self._sleep = Sleep(self._served)
        until_s = said_s = time.monotonic()
        until_s += self._server.start_within_s
        while True:
            try:
                wait_for(self._come_up(until_s - time.monotonic()))
                break
            except MistakenError as mistaken:
                raise ConfigError(f"model {self._spec.key!r}: {mistaken}") from None
            except (EngineAwayError, RefusedError) as away:
                now_s = time.monotonic()
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
            if self._runtime.sleeps:
                await self._sleep.see_awake()
            with within(self._server.timeout_s):
                reading = await self.reading(photo)
        except RefusedError as error:
            log.warning("a photo was refused", model=self._spec.key, reason=str(error))
            return self._no_vote("refused")
        except AsleepError:
            raise
        except EngineAwayError:
            if self._runtime.sleeps:
                # It may have fallen asleep with this question in hand.
                await self._sleep.look()
            if self._runtime.waits:
                raise
            # That the server is away was logged once; each photo is counted.
            return self._no_vote("away")
        if reading is None:
            return self._no_vote("unreadable")
        self._count("outside_ppm", round(1e6 * (reading.outside or 0)))
        if (reading.outside or 0) > self._server.max_outside:
            return self._no_vote("outside")
        return reading.score

    async def reading(self, photo: bytes) -> Reading | None:
        """The answer with what it leaves out; None: it cannot be read. Raises EngineAwayError, RefusedError."""
        asking = self._asking or await self._found()
        wording = asking.wording
        budget = self._serving.thinking_tokens
        if not budget:
            place = next(iter(await self._places(wording.at_once(), photo)), None)
        elif asking.end_of_thoughts >= 0:
            places = await self._places(wording.after_thoughts(budget, SLACK_TOKENS), photo)
            place = answer_place(places, asking.end_of_thoughts)
        else:
            place = await self._think_then_answer(wording, budget, photo)
        return read(place.logprobs(), wording.words, wording.way) if place else None

    def take_counts(self) -> dict[str, int]:
        """What became of questions since this was last asked: votes that were none, by reason; and outside_ppm.

        That is the sum of the probabilities of everything but yes and no, in millionths.
        """
        with self._counting:
            counts, self._counts = self._counts, {}
        return counts

    @property
    def asking(self) -> Asking:
        """How the server is asked.

        Raises:
            EngineAwayError: it was never awake yet.
        """
        if self._asking is None:
            raise EngineAwayError(f"{self._served.url} was not asked anything yet")
        return self._asking

    async def _all(self, inputs: Sequence[bytes]) -> list[float | None]:
        return await asyncio.gather(*map(self.ask, inputs))

    async def _think_then_answer(self, wording: Wording, budget: int, photo: bytes) -> Place | None:
        (thoughts,) = await self._choices(wording.think(budget, END), photo)
        text = thoughts.message.text.removeprefix(THINK).strip()
        said = wording.conclude(f"{THINK}\n{text}\n{END}\n\n")
        return answer_place(await self._places(said, photo))

    async def _places(self, question: Question, photo: bytes) -> list[Place]:
        (choice,) = await self._choices(question, photo)
        return choice.places

    async def _choices(self, question: Question, photo: bytes) -> list[Choice]:
        body = question.about(photo)
        choices = (await self._served.request("POST", "/v1/chat/completions", Completion, body)).choices
        if len(choices) != 1:
            raise EngineAwayError(f"{self._served.url} answered with {len(choices)} choices")
        return choices

    async def _come_up(self, within_s: float) -> None:
        """Sees what the server has, and how it can be asked; if it sleeps, a question would wait until it wakes."""
        with within(within_s):
            names = await self._served.models()
            known = [name for name in (self._spec.key, self._spec.repository) if name in names]
            if not known:
                served = ", ".join(names) or "nothing"
                raise ConfigError(f"model {self._spec.key!r}: {self._served.url} serves {served}")
            words = Words(*[frozenset(await self._tokens(known[0], spellings)) for spellings in (YES, NO)])
            if not (words.yes and words.no):
                raise ConfigError(
                    f"model {self._spec.key!r}: its tokenizer has no single token for yes, or none for no"
                )
            self._known = known[0], words
            if self._runtime.sleeps:
                try:
                    await self._sleep.look()
                except AsleepError as asleep:
                    log.info("a server sleeps, and is asked later", model=self._spec.key, reason=str(asleep))
                    return
            self._asking = await self._find()

    async def _found(self) -> Asking:
        """How a server that slept can be asked. Raises EngineAwayError."""
        async with self._finding:
            if self._asking is None:
                try:
                    self._asking = await self._find()
                except ConfigError as wrong:
                    # Its photos wait for whoever mends it.
                    raise EngineAwayError(str(wrong)) from None
        return self._asking

    async def _find(self) -> Asking:
        """Asks, in one way after another."""
        model, words = self._known
        release = (await self._served.request("GET", "/version", _Release)).version
        photo = self.prepare(Image.new("RGB", (64, 64), (127, 127, 127)), Shot())
        for way in ("chosen", "allowed", "top"):
            wording = Wording(model, self._prompt, words, way)
            if await self._works(wording, photo):
                break
        else:
            raise ConfigError(
                f"model {self._spec.key!r}: {self._served.url} gives no log-probabilities of single tokens: start it "
                "with --logprobs-mode raw_logprobs or processed_logprobs, and --max-logprobs 20 or more"
            )
        end = await self._end_of_thoughts(wording, photo) if self._serving.thinking_tokens else -1
        log.info(
            "a server can be asked",
            model=self._spec.key,
            url=self._served.url,
            release=release,
            way=way,
            thoughts="" if not self._serving.thinking_tokens else ("budget" if end >= 0 else "two questions"),
        )
        return Asking(wording, end)

    async def _tokens(self, model: str, spellings: Sequence[str]) -> list[int]:
        """Of the spellings that are one token each."""
        found = []
        for text in spellings:
            body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
            tokens = (await self._served.request("POST", "/tokenize", _Tokens, body)).tokens
            found += tokens if len(tokens) == 1 else []
        return found

    async def _works(self, wording: Wording, photo: bytes) -> bool:
        try:
            places = await self._places(wording.at_once(), photo)
        except RefusedError as error:
            log.debug("a server cannot be asked this way", way=wording.way, reason=str(error))
            return False
        found = places[0].logprobs() if places else {}
        return bool(found) and works(found, wording.words, wording.way)

    async def _end_of_thoughts(self, wording: Wording, photo: bytes) -> int:
        """The token that ends them if the server keeps a budget of thoughts; else -1."""
        tokens = await self._tokens(wording.model, [END])
        if not tokens or wording.way == "allowed":
            return -1
        try:
            places = await self._places(wording.after_thoughts(PROBE_BUDGET, SLACK_TOKENS), photo)
        except RefusedError as error:
            log.debug("a server keeps no budget of thoughts", reason=str(error))
            return -1
        numbers = [place.number for place in places]
        kept = tokens[0] in numbers[: PROBE_BUDGET + ANSWER_TOKENS]
        return tokens[0] if kept and answer_place(places, tokens[0]) else -1

    def _no_vote(self, why: str) -> float | None:
        self._count(f"no_vote_{why}", 1)
        return None

    def _count(self, name: str, by: int) -> None:
        with self._counting:
            self._counts[name] = self._counts.get(name, 0) + by


class _Tokens(Struct, frozen=True):
    tokens: list[int]


class _Release(Struct, frozen=True):
    version: str = ""
