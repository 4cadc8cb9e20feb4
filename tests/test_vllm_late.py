"""The vLLM engine of a tier whose server sleeps, or is not there yet when its worker starts."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import get_args

import pytest
from structlog.testing import capture_logs

import workers.asleep
import workers.engines.vllm
import workers.served
from configs.errors import ServerError
from configs.model import load_model
from configs.serving import Server
from tests.rude_server import Reply, rude
from tests.sleeper import NAME, Sleeper, asking, sleeper
from workers.asleep import LOOK_S, AsleepError
from workers.background import wait_for
from workers.engines import EngineAwayError, Runtime
from workers.engines.vllm import Engine
from workers.yes_no import Way


@pytest.fixture
def asleep() -> Iterator[tuple[Sleeper, str]]:
    """A server that sleeps."""
    with sleeper() as server:
        yield server


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


def test_a_worker_comes_up_while_its_server_sleeps(asleep: tuple[Sleeper, str]) -> None:
    """It is ready without a question, which would wait for a waker who waits for it; awake, it is asked."""
    server, url = asleep
    engine = Engine(load_model(NAME), Runtime(url=url, sleeps=True, server=Server(start_within_s=3.0, timeout_s=3.0)))
    engine.load()
    assert server.questions == 0
    with pytest.raises(AsleepError):
        engine.score([b"photo"])
    server.asleep = False
    time.sleep(LOOK_S)
    assert engine.score([b"photo"]) == [pytest.approx(2.9)]
    assert engine.asking.wording.way == "chosen"


def test_a_server_that_fails_at_its_start_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it fails on a question says nothing of how it can be asked."""
    monkeypatch.setattr(workers.served, "RETRY_BASE_S", 0.01)
    with sleeper(asleep=False) as (server, url):
        engine = Engine(load_model(NAME), Runtime(url=url, server=Server(start_within_s=10.0)))
        server.fails = True
        threading.Timer(0.7, lambda: setattr(server, "fails", False)).start()
        engine.load()
    assert engine.asking.wording.way == "chosen"


@pytest.mark.parametrize("silent", [False, True])
def test_a_server_that_falls_asleep_over_its_questions(
    asleep: tuple[Sleeper, str], silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come again, also those that the breaker stopped; awake again, it is asked at once. So if it does not say."""
    monkeypatch.setattr(workers.served, "LOOK_WITHIN_S", 0.3)
    server, url = asleep
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


def test_all_who_ask_after_a_wake_wait_for_one_look(asleep: tuple[Sleeper, str]) -> None:
    """None of them is refused on the old word, and the server is asked once."""
    server, url = asleep
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
    with sleeper(asleep=False, port=port):
        until_s = time.monotonic() + 5.0
        while engine.score([b"photo"]) == [None]:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        assert engine.score([b"photo"] * 8) == [pytest.approx(2.9)] * 8
        assert engine.asking.wording.way == "chosen"


def test_the_first_photo_after_a_start_in_vain_finds_a_server_that_just_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The breaker of the looks in vain does not stand in its way."""
    monkeypatch.setattr(workers.engines.vllm, "HOLD_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine = Engine(load_model(NAME), Runtime(url=f"http://127.0.0.1:{port}", server=Server(timeout_s=3.0)))
    engine.load()
    with sleeper(asleep=False, port=port):
        assert engine.score([b"photo"] * 8) == [pytest.approx(2.9)] * 8


def test_a_server_that_refuses_a_bias_is_asked_by_allowed_tokens(asleep: tuple[Sleeper, str]) -> None:
    """As one does that drafts tokens: it says so with a 400, and the next way is tried."""
    server, url = asleep
    server.asleep, server.fields, server.refuses = False, {"allowed_token_ids", "top_logprobs"}, {"logit_bias"}
    engine = Engine(load_model(NAME), Runtime(url=url, server=Server(timeout_s=3.0)))
    engine.load()
    assert engine.asking.wording.way == "allowed"
    assert engine.score([b"photo"]) == [pytest.approx(2.2522)]


def test_a_worker_whose_items_wait_waits_for_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its profile says: it has no use for them without it."""
    monkeypatch.setattr(workers.engines.vllm, "HOLD_S", 0.1)
    runtime = Runtime(url="http://127.0.0.1:1", waits=True, server=Server(start_within_s=1.0))
    with pytest.raises(ServerError, match="did not come up"):
        Engine(load_model(NAME), runtime).load()


def test_a_server_that_cannot_be_asked_is_not_asked_for_every_photo(asleep: tuple[Sleeper, str]) -> None:
    """Found out after it woke: said once, remembered, and looked at again later."""
    server, url = asleep
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
    assert server.questions == asked <= len(get_args(Way))
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert "logprobs-mode" in str(line)
    server.fields = {"top_logprobs"}
    engine._finding._wrong_until_s = 0.0
    assert engine.score([b"photo"]) == [pytest.approx(2.2522)]
