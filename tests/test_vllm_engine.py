"""The vLLM engine without its server: asleep, away, not there at all. What it asks a real one is in tests/vllm."""

import asyncio
import io
import json
import socket
import time
from collections.abc import Iterator

import pytest
from aiohttp import web
from PIL import Image
from structlog.testing import capture_logs

import workers.asleep
import workers.engines.vllm
import workers.served
from configs.errors import ConfigError, PhotoError, ServerError
from configs.model import load_model
from configs.serving import Server
from ops.model_check import beside
from tests.rude_server import Reply, rude
from workers.asking import Asking
from workers.asleep import LOOK_S, AsleepError, Sleep
from workers.background import wait_for
from workers.engines import AskedEngine, EngineAwayError, Runtime, Shot, build
from workers.engines.vllm import Engine
from workers.question import Wording
from workers.served import Served
from workers.yes_no import Words

NAME = "qwen3-vl-4b-instruct"
ASKING = Asking(Wording(NAME, "Roadwork?", Words(frozenset({1}), frozenset({2})), "chosen"))


def asking(url: str, *, waits: bool = False, sleeps: bool = False, timeout_s: float = 5.0) -> Engine:
    """An engine as if it had been loaded."""
    runtime = Runtime(url=url, waits=waits, sleeps=sleeps, server=Server(timeout_s=timeout_s))
    engine = Engine(load_model(NAME), runtime)
    engine._served = Served(url, NAME, timeout_s)
    engine._sleep = Sleep(engine._served)
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


class Sleeper:
    """A server that says whether it sleeps, and answers questions only while it is awake: vLLM leaves them waiting."""

    def __init__(self) -> None:
        self.asleep = True
        self.silent = False
        self.questions = 0
        #: All requests.
        self.asked = 0
        #: Where it gives log-probabilities: with these fields in a question; without any it does not.
        self.fields = {"logprob_token_ids", "allowed_token_ids", "top_logprobs"}

    async def start(self, port: int = 0) -> str:
        app = web.Application(client_max_size=10**7)
        app.add_routes([web.get("/{path:.*}", self.said), web.post("/{path:.*}", self.said)])
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def said(self, request: web.Request) -> web.Response:
        self.asked += 1
        while self.silent:  # noqa: ASYNC110 - another thread says it
            await asyncio.sleep(0.02)
        if request.path == "/is_sleeping":
            return web.json_response({"is_sleeping": self.asleep})
        if request.path == "/tokenize":
            token = {"Yes": 1, "No": 2}.get((await request.json())["prompt"])
            return web.json_response({"tokens": [token] if token else [3, 4]})
        if request.path != "/v1/chat/completions":
            return web.json_response({"data": [{"id": NAME}], "version": "0"})
        self.questions += 1
        while self.asleep:  # noqa: ASYNC110 - another thread says it
            await asyncio.sleep(0.02)
        if not self.fields & set(await request.json()):
            return web.json_response({"choices": [{"message": {"content": "Yes"}}]})
        content = [{"token": f"token_id:{i}", "logprob": p} for i, p in ((1, -0.1), (2, -3.0))]
        logprobs = {"content": [content[0] | {"top_logprobs": content}]}
        return web.json_response({"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}]})


@pytest.fixture
def sleeper() -> Iterator[tuple[Sleeper, str]]:
    server = Sleeper()
    yield server, wait_for(server.start())
    server.asleep = server.silent = False
    wait_for(server.runner.cleanup())


def test_a_worker_comes_up_while_its_server_sleeps(sleeper: tuple[Sleeper, str]) -> None:
    """It is ready without a question, which would wait for a waker who waits for it; awake, it is asked."""
    server, url = sleeper
    engine = Engine(load_model(NAME), Runtime(url=url, sleeps=True, server=Server(start_within_s=3.0, timeout_s=3.0)))
    engine.load()
    assert server.questions == 0
    with pytest.raises(AsleepError):
        engine.score([b"photo"])
    server.asleep = False
    time.sleep(LOOK_S)
    assert engine.score([b"photo"]) == [pytest.approx(2.9)]
    assert engine.asking.wording.way == "chosen"


@pytest.mark.parametrize("silent", [False, True])
def test_a_server_that_falls_asleep_over_its_questions(
    sleeper: tuple[Sleeper, str], silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come again, also those that the breaker stopped; awake again, it is asked at once. So if it does not say."""
    monkeypatch.setattr(workers.served, "LOOK_WITHIN_S", 0.3)
    server, url = sleeper
    engine = asking(url, sleeps=True, timeout_s=0.3)
    server.asleep = False
    assert engine.score([b"photo"]) == [pytest.approx(2.9)]
    server.asleep, server.silent = True, silent
    for _ in range(2):
        for outcome in wait_for(_outcomes(engine, 10)):
            assert isinstance(outcome, AsleepError)
    server.asleep = server.silent = False
    time.sleep(LOOK_S)
    assert [engine.score([b"photo"]) for _ in range(4)] == [[pytest.approx(2.9)]] * 4
    assert not {name for name in engine.take_counts() if "no_vote" in name}


async def _outcomes(engine: Engine, count: int) -> list[float | BaseException | None]:
    return await asyncio.gather(*(engine.ask(b"photo") for _ in range(count)), return_exceptions=True)


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


def test_a_server_that_sleeps_and_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon it may be on its way; after that the tier's rule for servers that are away holds."""
    with pytest.raises(AsleepError):
        asking("http://127.0.0.1:1", sleeps=True).score([b"photo"])
    monkeypatch.setattr(workers.asleep, "SILENT_S", 0.0)
    engine = asking("http://127.0.0.1:1", sleeps=True)
    for _ in range(2):
        assert engine.score([b"photo"]) == [None]
    assert engine.take_counts() == {"no_vote_away": 2}
    with pytest.raises(EngineAwayError, match="refused") as caught:
        asking("http://127.0.0.1:1", sleeps=True, waits=True).score([b"photo"])
    assert not isinstance(caught.value, AsleepError)


def test_a_server_without_a_word_for_sleep() -> None:
    """It is a server that is away, and not one that sleeps."""
    with rude(Reply(404, b"Not Found")) as server:
        engine = asking(server.url, sleeps=True)
        assert engine.score([b"photo"]) == [None]
        assert engine.take_counts() == {"no_vote_away": 1}


def test_all_who_ask_after_a_wake_wait_for_one_look(sleeper: tuple[Sleeper, str]) -> None:
    """None of them is refused on the old word, and the server is asked once."""
    server, url = sleeper
    engine = asking(url, sleeps=True)
    with pytest.raises(AsleepError):
        engine.score([b"photo"])
    server.asleep = False
    time.sleep(LOOK_S)
    server.asked = 0
    assert wait_for(_outcomes(engine, 64)) == [pytest.approx(2.9)] * 64
    assert server.asked == 65


def test_a_worker_whose_tier_abstains_does_not_hold_its_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes work without its server; once that is there, its photos have votes."""
    monkeypatch.setattr(workers.engines.vllm, "HOLD_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    runtime = Runtime(url=f"http://127.0.0.1:{port}", server=Server(start_within_s=900.0, timeout_s=3.0))
    engine = Engine(load_model(NAME), runtime)
    start_s = time.monotonic()
    engine.load()
    assert 0.5 <= time.monotonic() - start_s < 3.0
    assert engine.score([b"photo"]) == [None]
    assert engine.take_counts() == {"no_vote_away": 1}
    server = Sleeper()
    server.asleep = False
    wait_for(server.start(port))
    try:
        until_s = time.monotonic() + 5.0
        while engine.score([b"photo"]) == [None]:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        assert engine.score([b"photo"] * 8) == [pytest.approx(2.9)] * 8
        assert engine.asking.wording.way == "chosen"
    finally:
        wait_for(server.runner.cleanup())


def test_the_first_photo_after_a_start_in_vain_finds_a_server_that_just_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The breaker of the looks in vain does not stand in its way."""
    monkeypatch.setattr(workers.engines.vllm, "HOLD_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine = Engine(load_model(NAME), Runtime(url=f"http://127.0.0.1:{port}", server=Server(timeout_s=3.0)))
    engine.load()
    server = Sleeper()
    server.asleep = False
    wait_for(server.start(port))
    try:
        assert engine.score([b"photo"] * 8) == [pytest.approx(2.9)] * 8
    finally:
        wait_for(server.runner.cleanup())


def test_a_worker_whose_items_wait_waits_for_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its profile says: it has no use for them without it."""
    monkeypatch.setattr(workers.engines.vllm, "HOLD_S", 0.1)
    runtime = Runtime(url="http://127.0.0.1:1", waits=True, server=Server(start_within_s=1.0))
    with pytest.raises(ServerError, match="did not come up"):
        Engine(load_model(NAME), runtime).load()


def test_a_server_that_cannot_be_asked_is_not_asked_for_every_photo(sleeper: tuple[Sleeper, str]) -> None:
    """Found out after it woke: said once, remembered, and looked at again later."""
    server, url = sleeper
    server.fields = set()
    engine = Engine(load_model(NAME), Runtime(url=url, sleeps=True, server=Server(timeout_s=3.0)))
    engine.load()
    server.asleep = False
    time.sleep(LOOK_S)
    with capture_logs() as logs:
        assert engine.score([b"photo"] * 8) == [None] * 8
        asked, start_s = server.questions, time.monotonic()
        assert engine.score([b"photo"]) == [None]
        assert time.monotonic() - start_s < 0.1
    assert server.questions == asked <= 3
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert "logprobs-mode" in str(line)
    server.fields = {"top_logprobs"}
    engine._finding._wrong_until_s = 0.0
    assert engine.score([b"photo"]) == [pytest.approx(2.9)]


def test_what_was_ruled_out_is_not_counted_as_nothing(sleeper: tuple[Sleeper, str]) -> None:
    """Among allowed tokens alone nobody knows what is outside."""
    server, url = sleeper
    server.asleep = False
    engine = asking(url)
    engine._asking = Asking(Wording(NAME, "Roadwork?", ASKING.wording.words, "allowed"))
    assert engine.score([b"photo"]) == [pytest.approx(2.9)]
    counts = engine.take_counts()
    assert "outside_ppm" not in counts
    assert "not known" in beside(counts)
