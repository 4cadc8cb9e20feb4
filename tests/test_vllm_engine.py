"""The vLLM engine without its server: away, not there at all, no use. What it asks a real one is in tests/vllm."""

import io
import json
import socket
import time

import pytest
from PIL import Image
from structlog.testing import capture_logs

from configs.errors import ConfigError, PhotoError, ServerError
from configs.model import load_model
from configs.serving import Server
from ops.model_check import beside
from tests.rude_server import Reply, rude
from tests.sleeper import ASKING, NAME, asking, sleeper
from workers.asking import Asking
from workers.engines import AskedEngine, EngineAwayError, Runtime, Shot, build
from workers.engines.vllm import Engine
from workers.question import Wording
from workers.served import Served


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


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_mistake_in_the_profile_ends_the_worker_at_once(status: int) -> None:
    """A wrong key or name: said in one line, and not looked for until the start has failed."""
    with rude(Reply(status, b"who are you")) as server:
        engine = Engine(load_model(NAME), Runtime(url=server.url, server=Server(start_within_s=30.0)))
        with pytest.raises(ConfigError, match=rf"'{NAME}': .* says {status}: who are you .*NATIX_FLEET_VLM_KEY"):
            engine.load()
    assert len(server.asked) == 1


def test_a_server_that_listens_and_is_silent() -> None:
    """The start's bound holds for a single request too."""
    with rude(Reply(after_s=2.0)) as server:
        engine = Engine(load_model(NAME), Runtime(url=server.url, server=Server(start_within_s=0.5)))
        start_s = time.monotonic()
        with pytest.raises(ServerError, match=r"did not come up: .* has not answered in"):
            engine.load()
        assert time.monotonic() - start_s < 1.9


def test_thoughts_and_answer_have_one_deadline() -> None:
    """A model that thinks is asked twice; both together end in the time for one photo."""
    thought = {"message": {"content": "Hm."}, "finish_reason": "stop"}
    with rude(Reply(body=json.dumps({"choices": [thought]}).encode(), after_s=0.4)) as server:
        spec = load_model("qwen3-vl-8b-thinking")
        engine = Engine(spec, Runtime(url=server.url, server=Server(timeout_s=0.6), waits=True))
        engine._served = Served(server.url, spec.key, 0.6)
        engine._asking = ASKING
        start_s = time.monotonic()
        with pytest.raises(EngineAwayError, match="has not answered in"):
            engine.score([b"photo"])
        assert time.monotonic() - start_s < 0.75
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(500, b"model broken"), "says 500: model broken"),
        (Reply(body=b"<html>"), "answered with what this API has not"),
        (Reply(body=b'{"choices": []}'), "answered with 0 choices"),
    ],
)
def test_a_tier_that_abstains_says_why(reply: Reply, said: str) -> None:
    """Once, however many photos: what is no absence opens no breaker, which would say it."""
    with rude(reply) as server, capture_logs() as logs:
        engine = asking(server.url, timeout_s=0.2)
        for _ in range(5):
            assert engine.score([b"photo"] * 2) == [None] * 2
        assert engine._served.breaker.state == "closed"
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert said in str(line)


def test_what_was_ruled_out_is_not_counted_as_nothing() -> None:
    """Among allowed tokens alone nobody knows what is outside."""
    with sleeper(asleep=False) as (_, url):
        engine = asking(url)
        engine._asking = Asking(Wording(NAME, "Roadwork?", ASKING.wording.words, "allowed"))
        assert engine.score([b"photo"]) == [pytest.approx(2.2522)]
    counts = engine.take_counts()
    assert "outside_ppm" not in counts
    assert "not known" in beside(counts)
