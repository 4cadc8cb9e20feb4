"""The vLLM engine without its server: asleep, away, not there at all. What it asks a real one is in tests/vllm."""

import io
import socket
import time

import pytest
from PIL import Image

from configs.errors import PhotoError, ServerError
from configs.model import load_model
from configs.serving import Server
from tests.rude_server import Reply, rude
from workers.engines import AskedEngine, EngineAwayError, Runtime, Shot, build
from workers.engines.vllm import Asking, AsleepError, Engine
from workers.question import Wording
from workers.served import Served
from workers.yes_no import Words

NAME = "qwen3-vl-4b-instruct"
ASKING = Asking(Wording(NAME, "Roadwork?", Words(frozenset({1}), frozenset({2})), "chosen"))


def asking(url: str, *, waits: bool = False, sleeps: bool = False, timeout_s: float = 5.0) -> Engine:
    """An engine as if it had been loaded."""
    engine = Engine(load_model(NAME), Runtime(url=url, waits=waits, sleeps=sleeps))
    engine._served = Served(url, NAME, timeout_s)
    engine._asking = ASKING
    return engine


def test_a_server_that_never_comes() -> None:
    """The worker waits as long as its profile says, and then says for whom."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    engine = build(load_model(NAME), Runtime(url=url, server=Server(start_within_s=1.0)))
    assert isinstance(engine, AskedEngine)
    start_s = time.monotonic()
    with pytest.raises(ServerError, match=rf"'{NAME}': its server did not come up: {url}"):
        engine.load()
    assert 1.0 <= time.monotonic() - start_s < 6.0


@pytest.mark.parametrize("waits", [True, False])
def test_a_sleeping_server_is_not_asked(waits: bool) -> None:
    """Its items come again, whatever the tier does without a server; it is looked at once for all of them."""
    with rude(Reply(body=b'{"is_sleeping": true}')) as server:
        engine = asking(server.url, waits=waits, sleeps=True)
        for _ in range(20):
            with pytest.raises(AsleepError, match="sleeps"):
                engine.score([b"photo"])
    assert server.asked == [{}]
    assert engine.take_counts() == {}


def test_a_question_that_is_never_answered() -> None:
    """The time-out ends it; without a vote, or to come again."""
    with rude(Reply(after_s=1.0)) as server:
        start_s = time.monotonic()
        engine = asking(server.url, timeout_s=0.2)
        assert engine.score([b"photo"] * 8) == [None] * 8
        assert engine.take_counts() == {"no_vote_away": 8}
        with pytest.raises(EngineAwayError):
            asking(server.url, waits=True, timeout_s=0.2).score([b"photo"])
        assert time.monotonic() - start_s < 1.0


def test_stored_bytes_are_sent_as_they_are() -> None:
    """They are not decoded; what is no JPEG, or is not there, is a bad photo."""
    engine = asking("http://127.0.0.1:1")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    cut = buffer.getvalue()[:-20]
    import base64

    assert base64.b64decode(engine.prepare_stored(cut, Shot())) == cut
    with pytest.raises(PhotoError, match="undecodable"):
        engine.prepare_stored(b"GIF89a", Shot())
    with pytest.raises(PhotoError, match="bytes-missing"):
        engine.prepare_stored(None, Shot())
