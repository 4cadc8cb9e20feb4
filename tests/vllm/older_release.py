"""A real server as an older release would be: behind a proxy that drops the fields which that release ignores."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2


@contextmanager
def without(url: str, *fields: str) -> Iterator[str]:
    """The URL of that proxy, for as long as the context lasts.

    Args:
        url: of the server.
        fields: of a request's JSON, which do not get there.
    """
    connections: list[socket.socket] = []
    client = httpx2.Client(base_url=url, timeout=60, trust_env=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            connections.append(self.connection)

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

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            client.close()
