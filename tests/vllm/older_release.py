"""A real server as an older release would be: behind a proxy that drops the fields which that release ignores."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from tests.local_http import Handler, answering


@contextmanager
def without(url: str, *fields: str) -> Iterator[str]:
    """The URL of that proxy, for as long as the context lasts.

    Args:
        url: of the server.
        fields: of a request's JSON, which do not get there.
    """
    client = httpx2.Client(base_url=url, timeout=60, trust_env=False)

    class Proxy(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
            self._hand_back(client.post(self.path, json={k: v for k, v in body.items() if k not in fields}))

        def do_GET(self) -> None:
            self._hand_back(client.get(self.path))

        def _hand_back(self, reply: httpx2.Response) -> None:
            self.send_response(reply.status_code)
            self.send_header("content-length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

    with client, answering(Proxy) as there:
        yield there
