"""Asks a vision-language model that is served elsewhere, through the chat API that vLLM and others share.

The API: OpenAI's POST /v1/chat/completions, photos as data URLs of JPEG.
"""

import base64
import os
import random
import time
import weakref
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import httpx2
import msgspec
from msgspec import Struct

from configs.errors import ConfigError
from workers.engines import EngineAwayError

T = TypeVar("T")

#: Where the server is, http://HOST:PORT, unless a model's row says it; the environment goes first.
URL_VARIABLE = "NATIX_FLEET_VLM_URL"
#: What the server wants as a bearer token; unset: nothing.
KEY_VARIABLE = "NATIX_FLEET_VLM_KEY"

CONNECT_S = 5.0
#: Retries of one question, up to 0.5, 1, 2 and 4 s apart.
RETRIES, RETRY_BASE_S, RETRY_CAP_S = 4, 0.5, 4.0

#: The server is busy, or restarts behind its proxy: the same question may be answered later.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: The key, the path or the model's name is wrong: no photo's fault, and no retry heals it.
_MISTAKEN = frozenset({401, 403, 404, 405})


class RefusedError(Exception):
    """The server will not answer this question, now or later: it is too long, or its photo cannot be read there."""


class Turn(Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    text: str
    #: JPEG, which the text speaks of; empty: none.
    photo: bytes = b""


class Answer(Struct, frozen=True):
    """What the model said."""

    text: str
    #: "stop": it ended by itself; "length": it was cut at ``max_tokens``.
    finish: str


class Served:
    """One model of one server. May be asked from several threads.

    Args:
        url: http://HOST:PORT or https, with or without /v1.
        model: its name there.
        timeout_s: for one question, its retries and the pauses between them.

    Raises:
        ConfigError: the URL is none, or the key cannot be one.
    """

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self._timeout_s = timeout_s
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"${KEY_VARIABLE} holds characters that no header may have")
        try:
            parsed = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{url!r} is no URL of a served model: {error}") from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ConfigError(f"{url!r} is no URL of a served model: http://HOST:PORT is one")
        self._client = httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"} if key else {})
        # An engine has no end of its own, so its connections end with the last that refers to it.
        weakref.finalize(self, self._client.close)

    def names(self) -> list[str]:
        """The models that the server has; empty when it does not say.

        Raises:
            EngineAwayError: it does not answer.
        """
        listed = _decoded(self._request("GET", "/v1/models", None), _Models, self.url)
        return [model.id for model in listed.data]

    def ask(self, turns: Sequence[Turn], max_tokens: int) -> Answer:
        """The model's answer to a conversation, at temperature 0.

        Raises:
            EngineAwayError: the server is away, busy beyond ``timeout_s``, or does not serve this model to us.
            RefusedError: it will not answer this.
        """
        body = {
            "model": self.model,
            "messages": [_message(turn) for turn in turns],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        completion = _decoded(self._request("POST", "/v1/chat/completions", body), _Completion, self.url)
        if not completion.choices:
            raise EngineAwayError(f"{self.url} answered without a choice")
        choice = completion.choices[0]
        return Answer(choice.message.content or "", choice.finish_reason or "")

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        """The reply, its status 200; tried again while that may help and time is left."""
        until_s = time.monotonic() + self._timeout_s
        for tried in range(RETRIES + 1):
            left_s = max(until_s - time.monotonic(), 0.001)
            timeout = httpx2.Timeout(left_s, connect=min(left_s, CONNECT_S))
            wanted_s = 0.0
            try:
                reply = self._client.request(method, path, json=body, timeout=timeout)
            except httpx2.ReadTimeout:
                # Not asked again: the server is still at work on it, and would have it twice.
                raise EngineAwayError(f"{self.url} has not answered in {self._timeout_s:g} s") from None
            except httpx2.RequestError as error:
                cause = f"{self.url}: {str(error) or type(error).__name__}"
            else:
                if reply.status_code == 200:
                    return reply
                cause = f"{self.url} says {reply.status_code}: {_reason(reply)}"
                if reply.status_code in _MISTAKEN:
                    raise EngineAwayError(f"{cause} (is {self.model!r} served there, and is ${KEY_VARIABLE} right?)")
                if reply.status_code < 400:
                    raise EngineAwayError(f"{cause} (is the URL right? redirects are not followed)")
                if reply.status_code < 500 and reply.status_code not in _PASSING:
                    raise RefusedError(cause)
                wanted_s = _retry_after_s(reply)
            # Somewhere between at once and the longest pause, so that many askers do not come back together.
            # Source: M. Brooker, Exponential Backoff And Jitter, 2015 ("full jitter").
            pause_s = max(random.uniform(0, min(RETRY_CAP_S, RETRY_BASE_S * 2**tried)), wanted_s)  # noqa: S311 - no secret
            if tried == RETRIES or time.monotonic() + pause_s >= until_s:
                break
            time.sleep(pause_s)
        raise EngineAwayError(cause)


def url_of(option: str) -> str:
    """Where a model is served: what the environment says, else its row.

    Raises:
        ConfigError: neither says it.
    """
    url = os.environ.get(URL_VARIABLE) or option
    if not url:
        raise ConfigError(f"no server of vision-language models is named: set {URL_VARIABLE}=http://HOST:PORT")
    return url


class _Message(Struct, frozen=True):
    content: str | None = None


class _Choice(Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Completion(Struct, frozen=True):
    choices: list[_Choice]


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]


def _message(turn: Turn) -> dict[str, Any]:
    if not turn.photo:
        return {"role": turn.role, "content": turn.text}
    url = "data:image/jpeg;base64," + base64.b64encode(turn.photo).decode("ascii")
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": turn.text}]
    return {"role": turn.role, "content": parts}


def _decoded(reply: httpx2.Response, kind: type[T], url: str) -> T:
    try:
        return msgspec.json.decode(reply.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineAwayError(f"{url} answered with what this API has not: {error}") from None


def _reason(reply: httpx2.Response) -> str:
    """The first line of what the server says is wrong, at most 200 characters."""
    lines = reply.text.strip().splitlines()
    return lines[0][:200] if lines else reply.reason_phrase


def _retry_after_s(reply: httpx2.Response) -> float:
    """What the server asks us to wait; 0.0 when it does not say, or says a date."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0
