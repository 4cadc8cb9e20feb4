"""A server that says of itself what vLLM's says: healthy, its model, asleep or not; it answers no question."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def small_vlm(model: str, bearer: str = "") -> Iterator[str]:
    """Its URL.

    Args:
        model: that it serves.
        bearer: without which it answers 401; empty: anybody may ask.
    """
    answers = {
        "/health": "",
        "/metrics": "vllm:num_requests_running 0.0\n",
        "/is_sleeping": '{"is_sleeping": true}',
        "/v1/models": json.dumps({"data": [{"id": model}]}),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = not bearer or self.headers["Authorization"] == f"Bearer {bearer}"
            answer = answers.get(self.path)
            self.send_response(404 if answer is None else 200 if known else 401)
            self.end_headers()
            self.wfile.write((answer or "").encode() if known else b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            """Nothing on the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
