"""A server that says of itself what vLLM's says: healthy, its model, asleep or not; it answers no question."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.local_http import Handler, answering


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

    class Vlm(Handler):
        def do_GET(self) -> None:
            known = not bearer or self.headers["Authorization"] == f"Bearer {bearer}"
            answer = answers.get(self.path)
            body = (answer or "").encode() if known else b""
            self.send_response(404 if answer is None else 200 if known else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with answering(Vlm) as url:
        yield url
