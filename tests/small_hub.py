"""A server that answers as the Hugging Face hub does, for a few small repositories: it plays the network, no model."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from tests.local_http import Handler, answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(Handler):
    """Files by repository and path; one token opens the gated ones; ``broken`` ones fail in the middle of a file."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    gated: ClassVar[set[str]] = set()
    token: ClassVar[str] = "hf_accepted"  # noqa: S105 - opens this server only
    broken: ClassVar[set[str]] = set()

    def do_HEAD(self) -> None:
        """Of a file: its size, its hash, its commit."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """A repository's commit, its list of files, or a file."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/").removeprefix("api/models/")
        repository, (kind, revision, *place) = "/".join(path.split("/")[:2]), path.split("/")[2:]
        files = self.repositories.get(repository)
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif revision not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
        elif kind == "revision":
            self._json({"id": repository, "sha": COMMIT})
        elif kind == "tree":
            self._json([{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()])
        elif repository in self.gated and self.headers["Authorization"] != f"Bearer {self.token}":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body=body)
        elif repository in self.broken and body:
            self._send(500, b"", {}, body=body)
        else:
            data = files["/".join(place)]
            self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT}, body=body)

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body=True)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def small_hub() -> Iterator[str]:
    """The hub's address, while it is up."""
    with answering(Hub) as url:
        yield url
