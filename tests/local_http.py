"""An HTTP server on loopback for as long as a context lasts; what it answers is its handler's."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Says nothing on the test's output, and keeps connections where replies tell their length."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Nothing."""


class _Server(ThreadingHTTPServer):
    """Ends the connections that its clients keep, and so the threads that serve them."""

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._kept: set[socket.socket] = set()

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Notes the connection."""
        assert isinstance(request, socket.socket)
        self._kept.add(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        """Then waits for the threads."""
        for connection in self._kept:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


@contextmanager
def answering(handler: type[Handler]) -> Iterator[str]:
    """Its URL."""
    with _Server(handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
