"""What a server replied: its status, why it refuses, when it wants to be asked again, and its body decoded."""

import os
from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from workers.engines import EngineAwayError

T = TypeVar("T")


class Reply(Struct, frozen=True):
    """Of one request."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def reason(self) -> str:
        """The first line of what the server says is wrong, at most 200 characters."""
        lines = self.body.decode("utf-8", "replace").strip().splitlines()
        return lines[0][:200] if lines else "no reason"

    def retry_after_s(self) -> float:
        """What the server asks us to wait; 0.0 when it does not say, or says a date."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isdecimal() else 0.0

    def decoded(self, kind: type[T], url: str) -> T:
        """Its body.

        Raises:
            EngineAwayError: it is none of this kind.
        """
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineAwayError(f"{url} answered with what this API has not: {error}") from None


def why(error: Exception) -> str:
    """Why there is no reply, in the system's words where it has some."""
    # Of a name that is not found, and of TLS, the number is another library's, and aiohttp has the words.
    theirs = isinstance(error, aiohttp.ClientConnectorDNSError | aiohttp.ClientSSLError)
    number = error.errno if isinstance(error, aiohttp.ClientOSError) and not theirs else None
    return os.strerror(number) if number and number > 0 else next(iter(str(error).splitlines()), type(error).__name__)
