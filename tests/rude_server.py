"""An HTTP server that answers as told: late, with errors, with half a reply. It plays a bad network, not a model."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from msgspec import Struct

from tests.local_http import Handler, answering


class Reply(Struct, frozen=True):
    """What it does with one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}
    after_s: float = 0.0
    #: The connection ends before the reply does.
    torn: bool = False


class Rude:
    """What it was asked, and what it says next; the last reply stands for all later requests."""

    def __init__(self, *replies: Reply) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._replies = list(replies)
        self._lock = threading.Lock()

    def take(self, body: bytes, headers: dict[str, str]) -> Reply:
        """Notes a request; the reply to it."""
        with self._lock:
            self.asked.append(json.loads(body or b"{}"))
            self.headers.append(headers)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


def said(text: str, finish: str = "stop") -> Reply:
    """A proper reply of a chat model."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply(body=json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


@contextmanager
def rude(*replies: Reply) -> Iterator[Rude]:
    """Such a server, for as long as the context lasts."""
    state = Rude(*replies)

    class Answers(Handler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = state.take(body, headers | {"peer": str(self.client_address)})
            time.sleep(reply.after_s)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body) + (1 if reply.torn else 0)))
            with suppress(ConnectionError):  # who asked has not waited: that is a test's point
                self.end_headers()
                self.wfile.write(reply.body)
            self.close_connection |= reply.torn

        def do_GET(self) -> None:
            self.do_POST()

    with answering(Answers) as state.url:
        yield state
