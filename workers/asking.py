"""How a server can be asked: found out by asking it, not by its release."""

import time
from collections.abc import Sequence
from typing import get_args

import msgspec
import structlog
from msgspec import Struct

from configs.errors import ConfigError
from configs.model import ModelSpec
from configs.prompt import load_prompt
from configs.serving import Serving
from workers.answer import Choice, Completion, Place, answer_place
from workers.engines import EngineAwayError
from workers.question import ANSWER_TOKENS, Question, Wording
from workers.served import FailsError, RefusedError, Served
from workers.shared import Shared
from workers.yes_no import FORCED, NO, YES, Way, Words, works

log = structlog.get_logger(__name__)

#: Tokens after the thoughts, within which the answer must come.
SLACK_TOKENS = 16
END = "</think>"
#: A first question that shows whether the server keeps a budget of thoughts.
PROBE_BUDGET = 4
#: A server that cannot be asked is looked at again after so long.
AGAIN_S = 30.0


class Asking(Struct, frozen=True):
    """What was found out about a server."""

    wording: Wording
    #: The token that ends thoughts; -1: the server keeps no budget, and a thinking model is asked twice.
    end_of_thoughts: int = -1


async def choice_of(served: Served, question: Question, photo: bytes) -> Choice:
    """What a server answers about a photo. Raises EngineAwayError, RefusedError."""
    body = question.about(photo)
    choices = (await served.request("POST", "/v1/chat/completions", Completion, body)).choices
    if len(choices) != 1:
        raise EngineAwayError(f"{served.url} answered with {len(choices)} choices")
    return choices[0]


class Finding:
    """Finds it out, of one model of one server. In the background loop.

    Args:
        spec: the model.
        served: its server.
        photo: any, as it would be sent.
    """

    def __init__(self, spec: ModelSpec, served: Served, photo: bytes) -> None:
        self._spec = spec
        self._serving = spec.serving or Serving()
        self._prompt = load_prompt(self._serving.prompt)
        self._served = served
        self._photo = photo
        #: What see() saw.
        self._known: tuple[str, Words] | None = None
        #: Why it cannot be asked, and until when that is believed.
        self._wrong, self._wrong_until_s = "", 0.0
        self._once = Shared(self._late)

    async def see(self) -> tuple[str, Words]:
        """The model's name there, and its words: a server that sleeps says that too.

        Raises:
            ConfigError: it does not serve this model, or that has no words for yes and no.
            EngineAwayError, RefusedError: it does not say.
        """
        names = await self._served.models()
        known = [name for name in (self._spec.key, self._spec.repository) if name in names]
        if not known:
            served = ", ".join(names) or "nothing"
            raise ConfigError(f"model {self._spec.key!r}: {self._served.url} serves {served}")
        words = Words(*[frozenset(await self._tokens(known[0], spellings)) for spellings in (YES, NO)])
        if not (words.yes and words.no):
            raise ConfigError(f"model {self._spec.key!r}: its tokenizer has no single token for yes, or none for no")
        self._known = known[0], words
        return self._known

    async def find(self) -> Asking:
        """Asks, in one way after another.

        Raises:
            ConfigError: it gives no log-probabilities; or as see(), which comes first.
            EngineAwayError, RefusedError: it does not answer.
        """
        model, words = self._known or await self.see()
        release = (await self._served.request("GET", "/version", _Release)).version
        for way in get_args(Way):
            wording = Wording(model, self._prompt, words, way, self._serving.chat_template)
            if await self._works(wording):
                break
        else:
            raise ConfigError(
                f"model {self._spec.key!r}: {self._served.url} gives no log-probabilities of single tokens: start it "
                "with --logprobs-mode raw_logprobs or processed_logprobs, and --max-logprobs 20 or more"
            )
        end = await self._end_of_thoughts(wording) if self._serving.thinking_tokens else -1
        log.info(
            "a server can be asked",
            model=self._spec.key,
            url=self._served.url,
            release=release,
            way=way,
            thoughts="" if not self._serving.thinking_tokens else ("budget" if end >= 0 else "two questions"),
        )
        return Asking(wording, end)

    async def find_late(self) -> Asking:
        """As find(), when photos are there already: all of them wait for one, and what is wrong is remembered a while.

        Raises:
            EngineAwayError: it does not answer, or cannot be asked.
        """
        if time.monotonic() < self._wrong_until_s:
            raise EngineAwayError(self._wrong)
        return await self._once()

    async def _late(self) -> Asking:
        try:
            return await self.find()
        except RefusedError as refused:
            # That is no photo's fault.
            raise EngineAwayError(str(refused)) from None
        except ConfigError as error:
            if str(error) != self._wrong:
                log.error("a server cannot be asked", model=self._spec.key, reason=str(error))  # noqa: TRY400 - expected
            # Whoever mends it starts it anew, maybe with other models.
            self._wrong, self._wrong_until_s, self._known = str(error), time.monotonic() + AGAIN_S, None
            raise EngineAwayError(self._wrong) from None

    async def _tokens(self, model: str, spellings: Sequence[str]) -> list[int]:
        """Of the spellings that are one token each."""
        found = []
        for text in spellings:
            body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
            tokens = (await self._served.request("POST", "/tokenize", _Tokens, body)).tokens
            found += tokens if len(tokens) == 1 else []
        return found

    async def _places(self, question: Question) -> list[Place]:
        return (await choice_of(self._served, question, self._photo)).places

    async def _works(self, wording: Wording) -> bool:
        try:
            places = await self._places(wording.at_once())
        except FailsError:
            # At the start of a server, say: that says nothing of the way.
            raise
        except RefusedError as error:
            log.debug("a server cannot be asked this way", way=wording.way, reason=str(error))
            return False
        found = places[0].logprobs() if places else {}
        return bool(found) and works(found, wording.words, wording.way)

    async def _end_of_thoughts(self, wording: Wording) -> int:
        """The token that ends them if the server keeps a budget of thoughts; else -1."""
        tokens = await self._tokens(wording.model, [END])
        if not tokens or wording.way in FORCED:
            return -1
        try:
            places = await self._places(wording.after_thoughts(PROBE_BUDGET, SLACK_TOKENS))
        except FailsError:
            raise
        except RefusedError as error:
            log.debug("a server keeps no budget of thoughts", reason=str(error))
            return -1
        numbers = [place.number for place in places]
        kept = tokens[0] in numbers[: PROBE_BUDGET + ANSWER_TOKENS]
        return tokens[0] if kept and answer_place(places, tokens[0]) else -1


class _Tokens(Struct, frozen=True):
    tokens: list[int]


class _Release(Struct, frozen=True):
    version: str = ""
