"""Asks a vision-language model that is served elsewhere, through the chat API that vLLM and others share.

The API: OpenAI's POST /v1/chat/completions, photos as data URLs of JPEG.
"""

import asyncio
import os
import random
import time
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from msgspec import Struct

from configs.errors import ConfigError
from workers.answer import Completion
from workers.background import wait_for
from workers.breaker import Breaker
from workers.connections import connections
from workers.deadline import deadline_s
from workers.engines import EngineAwayError
from workers.recovery import Recovery
from workers.reply import Reply, why
from workers.turn import Turn

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Where the server is, http://HOST:PORT, unless a model's row says it; the environment goes first.
URL_VARIABLE = "NATIX_FLEET_VLM_URL"
#: What the server wants as a bearer token; unset: nothing.
KEY_VARIABLE = "NATIX_FLEET_VLM_KEY"

CONNECT_S = 5.0
#: For a word of the server about itself.
LOOK_WITHIN_S = 5.0
#: Of the question whether a server that was away is healthy again.
PROBE_S = 2.0
#: Retries of one question, up to 0.5, 1, 2 and 4 s apart.
RETRIES, RETRY_BASE_S, RETRY_CAP_S = 4, 0.5, 4.0

#: The server is busy, or restarts behind its proxy: the same question may be answered later.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Busy, and not away.
_BUSY = frozenset({408, 425, 429, 500})
#: The key, the path or the model's name is wrong: no photo's fault, and no retry heals it.
_MISTAKEN = frozenset({401, 403, 404, 405})
#: Of the paths that are asked, those that other servers have not.
_OF_VLLM = frozenset({"/tokenize", "/version"})


class RefusedError(Exception):
    """The server will not answer this question, now or later: it is too long, or its photo cannot be read there."""


class FailsError(RefusedError):
    """The server is well, and fails on this question each time: it says 500."""


class MistakenError(EngineAwayError):
    """The key, the path or the model's name is wrong: no retry heals that."""


class Answer(Struct, frozen=True):
    """What the model said."""

    text: str
    #: "stop": it ended by itself; "length": it was cut at ``max_tokens``.
    finish: str


class Served:
    """One server, and one model of it. May be asked from several threads, and in the background loop.

    Args:
        url: http://HOST:PORT or https, with or without /v1.
        model: its name there.
        timeout_s: for one request, its retries and the pauses between them; less where within() says so.
        in_flight: questions that the server has at once, at most; others wait here.

    Raises:
        ConfigError: the URL is none, or the key cannot be one.
    """

    def __init__(self, url: str, model: str, timeout_s: float, in_flight: int = 64) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.breaker = Breaker()
        self._timeout_s = timeout_s
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"${KEY_VARIABLE} holds characters that no header may have")
        try:
            parsed = urlsplit(self.url)
            sound = parsed.scheme in {"http", "https"} and bool(parsed.hostname) and parsed.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise ConfigError(f"{url!r} is no URL of a served model: http://HOST:PORT is one")
        self._session = connections(self, in_flight, {"Authorization": f"Bearer {key}"} if key else {})
        #: When a question was last answered, on the monotonic clock, and why one was not.
        self._answered_s = 0.0
        self._cause = ""
        self._recovery = Recovery()

    def names(self) -> list[str]:
        """The models that the server has; empty when it does not say.

        Raises:
            EngineAwayError: it does not answer.
        """
        return wait_for(self.models())

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> Answer:
        """The model's answer to a conversation, at temperature 0.

        Raises:
            EngineAwayError: the server is away, still busy after the retries, or does not serve this model to us.
            RefusedError: it will not answer this.
            FailsError: it fails on this.
        """
        body = {
            "model": self.model,
            "messages": [turn.message() for turn in turns],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        completion = wait_for(self.request("POST", "/v1/chat/completions", Completion, msgspec.json.encode(body)))
        if not completion.choices:
            raise EngineAwayError(f"{self.url} answered without a choice")
        choice = completion.choices[0]
        return Answer(choice.message.content or "", choice.finish_reason or "")

    async def models(self) -> list[str]:
        """As names(), in the background loop."""
        return [model.id for model in (await self.request("GET", "/v1/models", _Models)).data]

    async def request(self, method: str, path: str, kind: type[T], body: bytes | None = None) -> T:
        """The reply, tried again while that may help and time is left. In the background loop.

        Args:
            method: GET or POST.
            path: from the server's root.
            kind: what the reply is decoded as.
            body: JSON.

        Raises:
            EngineAwayError, RefusedError, FailsError: as ask().
            MistakenError: no retry would heal it.
        """
        begun_s = time.monotonic()
        until_s = min(begun_s + self._timeout_s, deadline_s())
        cause, fails = "", False
        for tried in range(RETRIES + 1):
            if not await self._recovery.over(self.breaker, self._look):
                raise EngineAwayError(f"{self.url} is away: {self._cause}")
            wanted_s = 0.0
            try:
                reply = await self._once(method, path, body, max(until_s - time.monotonic(), 0.001))
            except EngineAwayError as away:
                self._failed(str(away))
                if fails:
                    break
                raise
            except aiohttp.ClientError as error:
                cause, fails = f"{self.url}: {why(error)}", False
                self._failed(cause)
            else:
                if reply.status == 200:
                    self._answered()
                    return reply.decoded(kind, self.url)
                cause = f"{self.url} says {reply.status}: {reply.reason()}"
                self._judge(reply.status, path, cause)
                wanted_s, fails = reply.retry_after_s(), reply.status == 500
            # Somewhere between at once and the longest pause, so that many askers do not come back together.
            # Source: M. Brooker, Exponential Backoff And Jitter, 2015 ("full jitter").
            pause_s = max(random.uniform(0, min(RETRY_CAP_S, RETRY_BASE_S * 2**tried)), wanted_s)  # noqa: S311 - no secret
            if tried == RETRIES or time.monotonic() + pause_s >= until_s:
                break
            await asyncio.sleep(pause_s)
        # Others were answered meanwhile; or nobody else asked, and it is well.
        if fails and (self._answered_s > begun_s or await self._is_well()):
            raise FailsError(cause)
        raise EngineAwayError(cause)

    async def look(self, path: str, kind: type[T]) -> T:
        """The reply to one GET, whether the server is thought to be away or not. In the background loop.

        Raises:
            EngineAwayError: there is none within LOOK_WITHIN_S, or it is not what was asked for.
            MistakenError: no retry would heal it.
        """
        left_s = min(LOOK_WITHIN_S, max(deadline_s() - time.monotonic(), 0.001))
        try:
            reply = await self._once("GET", path, None, left_s)
        except aiohttp.ClientError as error:
            raise EngineAwayError(f"{self.url}: {why(error)}") from None
        if reply.status == 200:
            return reply.decoded(kind, self.url)
        kind_of_error = MistakenError if reply.status in _MISTAKEN else EngineAwayError
        raise kind_of_error(f"{self.url} says {reply.status} to {path}: {reply.reason()}")

    async def _look(self) -> None:
        """Whether it is healthy again; one that has no word for that is, if it answers."""
        try:
            reply = await self._once("GET", "/health", None, PROBE_S)
        except (EngineAwayError, aiohttp.ClientError) as error:
            self._failed(f"{self.url}: {why(error)}")
        else:
            if reply.status < 500:
                self._answered(busy=True)
            else:
                self._failed(f"{self.url} says {reply.status}: {reply.reason()}")

    async def _is_well(self) -> bool:
        """Whether it says so itself."""
        try:
            return (await self._once("GET", "/health", None, PROBE_S)).status == 200
        except (EngineAwayError, aiohttp.ClientError):
            return False

    async def _once(self, method: str, path: str, body: bytes | None, left_s: float) -> "Reply":
        timeout = aiohttp.ClientTimeout(total=left_s, sock_connect=min(left_s, CONNECT_S))
        headers = {"content-type": "application/json"} if body else {}
        try:
            async with self._session.request(
                method, self.url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as reply:
                return Reply(reply.status, await reply.read(), reply.headers)
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError:
            # Not asked again: the server is still at work on it, and would have it twice.
            raise EngineAwayError(f"{self.url} has not answered in {left_s:.2g} s") from None

    def _judge(self, status: int, path: str, cause: str) -> None:
        """What a status other than 200 says of the server, and whether it may pass.

        Raises:
            EngineAwayError, MistakenError, RefusedError: it may not.
        """
        if status in _BUSY or (400 <= status < 500 and status not in _MISTAKEN):
            self._answered(busy=True)
        else:
            self._failed(cause)
        if status in _MISTAKEN:
            if path in _OF_VLLM:
                raise MistakenError(f"{cause} at {path} (is it a vLLM, and is {self.model!r} served there?)")
            raise MistakenError(f"{cause} (is {self.model!r} served there, and is ${KEY_VARIABLE} right?)")
        if status < 400:
            raise EngineAwayError(f"{cause} (is the URL right? redirects are not followed)")
        if status < 500 and status not in _PASSING:
            raise RefusedError(cause)

    def _answered(self, *, busy: bool = False) -> None:
        if self.breaker.state != "closed":
            log.info("a server answers again", url=self.url)
        self.breaker.answered()
        if not busy:
            self._answered_s = time.monotonic()

    def _failed(self, cause: str) -> None:
        was = self.breaker.state
        self.breaker.failed(time.monotonic())
        self._cause = cause
        if was == "closed" and self.breaker.state == "open":
            log.warning("a server is away", url=self.url, reason=cause)


def url_of(option: str) -> str:
    """Where a model is served: what the environment says, else its row.

    Raises:
        ConfigError: neither says it.
    """
    url = os.environ.get(URL_VARIABLE) or option
    if not url:
        raise ConfigError(f"no server of vision-language models is named: set {URL_VARIABLE}=http://HOST:PORT")
    return url


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]
