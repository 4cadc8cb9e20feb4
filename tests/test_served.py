"""Asking a served model: what travels, what is tried again, and in which words it fails."""

import asyncio
import base64
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import workers.served
from configs.errors import ConfigError
from tests.rude_server import Reply, rude, said
from workers.background import wait_for
from workers.breaker import Breaker
from workers.engines import EngineAwayError
from workers.served import KEY_VARIABLE, RETRIES, URL_VARIABLE, RefusedError, Served, url_of
from workers.turn import Turn

QUESTION = [Turn("user", "Is it roadwork?", b"\xff\xd8jpeg")]
BUSY = Reply(429, b'{"error": "too many"}')


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.served, "RETRY_BASE_S", 0.01)


def ask(url: str, timeout_s: float = 5.0) -> str:
    """The answer's text."""
    return Served(url, "vlm", timeout_s).ask(QUESTION, 16).text


def test_what_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The photo goes first and unchanged, as a data URL; at temperature 0; with the key as bearer."""
    monkeypatch.setenv(KEY_VARIABLE, "open sesame")
    with rude(said("yes", "length")) as server:
        served = Served(server.url + "/v1/", "vlm", 5)
        answer = served.ask([*QUESTION, Turn("assistant", "Hm."), Turn("user", "Well?")], 16)
    assert (answer.text, answer.finish) == ("yes", "length")
    (body,) = server.asked
    image, text = body["messages"][0]["content"]
    head, _, photo = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(photo) == QUESTION[0].photo
    assert text == {"type": "text", "text": "Is it roadwork?"}
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][2]["content"] == "Well?"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("vlm", 16, 0.0)
    assert server.headers[0]["authorization"] == "Bearer open sesame"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    """Two refusals that may pass, then the answer."""
    with rude(Reply(status), Reply(status), said("yes")) as server:
        assert ask(server.url) == "yes"
    assert len(server.asked) == 3


def test_a_torn_reply_is_asked_for_again() -> None:
    """A connection that ends before its reply costs one more question."""
    with rude(Reply(body=b'{"choi', torn=True), said("yes")) as server:
        assert ask(server.url) == "yes"
    assert len(server.asked) == 2


def test_retry_after_is_kept() -> None:
    """The server's own pause goes before ours; one that is longer than the time left is not begun."""
    with rude(Reply(429, headers={"retry-after": "1"}), said("yes")) as server:
        start_s = time.monotonic()
        assert ask(server.url) == "yes"
        assert time.monotonic() - start_s >= 1
    with rude(Reply(429, headers={"retry-after": "60"})) as server:
        start_s = time.monotonic()
        with pytest.raises(EngineAwayError, match="says 429"):
            ask(server.url)
        assert time.monotonic() - start_s < 2
    assert len(server.asked) == 1


def test_a_server_that_stays_busy_is_away() -> None:
    """After the retries: the engine is away, with the server's status and words."""
    with rude(BUSY) as server, pytest.raises(EngineAwayError, match=r'says 429: \{"error": "too many"\}'):
        ask(server.url)
    assert len(server.asked) == RETRIES + 1


def test_a_refused_connection_is_an_engine_away() -> None:
    """Nobody listens: away, and the address is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EngineAwayError, match=f"http://127.0.0.1:{port}: .*refused"):
        ask(f"http://127.0.0.1:{port}")


def test_a_late_answer_is_an_engine_away() -> None:
    """The time-out ends one question, and it is not put twice to a server that is still at work on it."""
    with rude(Reply(after_s=1.5)) as server:
        start_s = time.monotonic()
        with pytest.raises(EngineAwayError, match=r"has not answered in 0\.3 s"):
            ask(server.url, timeout_s=0.3)
        assert time.monotonic() - start_s < 1
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_name_or_key_is_no_photos_fault(status: int) -> None:
    """Items wait until somebody puts it right; no retry, and the message says where to look."""
    with (
        rude(Reply(status, b"no model 'vlm'")) as server,
        pytest.raises(EngineAwayError, match="is 'vlm' served there"),
    ):
        ask(server.url)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 308, 501, 520])
def test_a_status_that_says_nothing_of_the_photo_is_an_engine_away(status: int) -> None:
    """A redirect, a proxy in between: the photo waits, and is not blamed."""
    with rude(Reply(status=status)) as server, pytest.raises(EngineAwayError, match=str(status)):
        Served(server.url, "m", 2.0).ask([Turn("user", "q")], 4)


@pytest.mark.parametrize("key", ["sk-se\ncret", "sk-s\u00e9cret"])
def test_a_key_that_is_none_is_not_printed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the variable; a line break at its end, as in a file, is no fault."""
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ConfigError, match=KEY_VARIABLE) as caught:
        Served("http://127.0.0.1:1", "m", 1.0)
    assert "sk-" not in str(caught.value)
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret\n")
    Served("http://127.0.0.1:1", "m", 1.0)


def test_a_question_may_be_refused() -> None:
    """A 400 is this question's fault: no EngineAwayError, so the photo is suspected."""
    with rude(Reply(400, b"prompt is too long\ntrace")) as server:
        with pytest.raises(RefusedError, match=r"says 400: prompt is too long$"):
            ask(server.url)
        assert not issubclass(RefusedError, EngineAwayError)
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": "yes"}]}'])
def test_what_is_no_completion_is_an_engine_away(body: bytes) -> None:
    """Another program on that port is no photo's fault."""
    with rude(Reply(body=body)) as server, pytest.raises(EngineAwayError, match="answered with"):
        ask(server.url)


def test_many_at_once() -> None:
    """One client serves many threads, each with its own answer."""
    with rude(said("yes")) as server, ThreadPoolExecutor(8) as pool:
        served = Served(server.url, "vlm", 5)
        texts = list(pool.map(lambda i: served.ask([Turn("user", str(i))], 1).text, range(32)))
    assert texts == ["yes"] * 32
    assert sorted(int(body["messages"][0]["content"]) for body in server.asked) == list(range(32))


def test_names() -> None:
    """Which models a server has."""
    with rude(Reply(body=b'{"object": "list", "data": [{"id": "a"}, {"id": "b", "root": "x"}]}')) as server:
        served = Served(server.url, "vlm", 5)
        assert served.names() == ["a", "b"]


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://host:port"])
def test_a_url_that_is_none(url: str) -> None:
    """Said at once, not at the first photo."""
    with pytest.raises(ConfigError, match="is no URL of a served model"):
        Served(url, "vlm", 5)


def test_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment goes before the row; with neither the variable is named."""
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert url_of("http://row") == "http://row"
    with pytest.raises(ConfigError, match=URL_VARIABLE):
        url_of("")
    monkeypatch.setenv(URL_VARIABLE, "http://environment")
    assert url_of("http://row") == "http://environment"


def test_a_server_that_is_down_is_left_alone() -> None:
    """After five failures in a row nobody asks; then one does, and its answer is the end of that."""
    with rude(*[Reply(503)] * 5, said("yes")) as server:
        served = Served(server.url, "vlm", 5)
        served.breaker = Breaker(failures=5, open_s=0.3)
        with pytest.raises(EngineAwayError, match="says 503"):
            served.ask(QUESTION, 1)
        start_s = time.monotonic()
        for _ in range(50):
            with pytest.raises(EngineAwayError, match=r"is away: .*says 503"):
                served.ask(QUESTION, 1)
        assert time.monotonic() - start_s < 0.25
        assert len(server.asked) == 5
        time.sleep(0.3)
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(lambda _: served.ask(QUESTION, 1).text, range(16))) == ["yes"] * 16
    # Nobody's photo was the probe, and there was one.
    assert server.asked.count({}) == 1


def test_a_probe_that_is_not_answered_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for it waits no longer than it may take, also where the server takes a connection and says nothing."""
    monkeypatch.setattr(workers.served, "PROBE_S", 0.2)
    with rude(*[Reply(503)] * 5, Reply(after_s=1.0)) as server:
        served = Served(server.url, "vlm", 5)
        served.breaker = Breaker(failures=5, open_s=0.05)
        with pytest.raises(EngineAwayError, match="says 503"):
            served.ask(QUESTION, 1)
        time.sleep(0.06)
        start_s = time.monotonic()
        with pytest.raises(EngineAwayError, match="is away"):
            served.ask(QUESTION, 1)
        assert 0.15 < time.monotonic() - start_s < 0.6


def test_a_busy_server_is_not_down() -> None:
    """However often it says so: it answers."""
    with rude(BUSY) as server:
        served = Served(server.url, "vlm", 5)
        for _ in range(3):
            with pytest.raises(EngineAwayError):
                served.ask(QUESTION, 1)
        assert served.breaker.state == "closed"
        assert len(server.asked) == 3 * (RETRIES + 1)


def test_an_error_of_one_question_is_that_photos() -> None:
    """The server fails on it each time, and answers others meanwhile: it is not away."""
    broken = Reply(500, b"division by zero")
    with rude(broken, said("yes"), broken) as server:
        served = Served(server.url, "vlm", 30)

        async def both() -> list[object]:
            first = asyncio.create_task(served.request("POST", "/", dict, b'{"photo": 1}'))
            while not server.asked:  # noqa: ASYNC110 - another thread says it
                await asyncio.sleep(0.001)
            await served.request("POST", "/", dict, b'{"photo": 2}')
            return list(await asyncio.gather(first, return_exceptions=True))

        (error,) = wait_for(both())
    assert isinstance(error, RefusedError)
    assert "division by zero" in str(error)


@pytest.mark.parametrize(("health", "kind"), [(200, RefusedError), (503, EngineAwayError)])
def test_an_error_of_the_only_question_is_the_photos_where_the_server_is_well(health: int, kind: type) -> None:
    """Nobody else asks meanwhile: the server's own word decides, or the photo would come again without end."""
    broken = Reply(500, b"division by zero")
    with rude(*[broken] * (RETRIES + 1), Reply(health)) as server, pytest.raises(kind, match="division by zero"):
        ask(server.url)
    assert server.asked[-1] == {}


def test_a_question_that_is_slow_to_fail_is_the_photos_too() -> None:
    """Its time is over before its tries are, in the middle of one or before a pause."""
    for last in (Reply(after_s=1.0), Reply(500, headers={"retry-after": "60"})):
        with (
            rude(Reply(500, b"out of luck"), last, Reply(200)) as server,
            pytest.raises(RefusedError, match="says 500"),
        ):
            ask(server.url, timeout_s=0.5)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://no-such-host.invalid:8100", "Cannot connect to host no-such-host.invalid:8100"),
        ("https://127.0.0.1:PORT", "SSL"),
    ],
)
def test_the_commonest_mistakes_in_a_url_are_named(url: str, said: str) -> None:
    """A host that is none, and https where http is spoken; not by the numbers of another library."""
    with rude(Reply()) as server, pytest.raises(EngineAwayError, match=said):
        ask(url.replace("PORT", server.url.rpartition(":")[2]))


def test_what_is_no_vllm_is_told_so() -> None:
    """It serves the model, and has no path that the fleet needs."""
    with (
        rude(Reply(404, b"Not Found")) as server,
        pytest.raises(EngineAwayError, match="at /tokenize"),
    ):
        wait_for(Served(server.url, "vlm", 5).request("POST", "/tokenize", dict, b"{}"))


def test_a_connection_is_kept() -> None:
    """One for all questions that follow one another."""
    with rude(said("yes")) as server:
        served = Served(server.url, "vlm", 5)
        for _ in range(5):
            served.ask(QUESTION, 1)
        assert len({headers["peer"] for headers in server.headers}) == 1


def test_a_question_that_is_given_up_is_nobodys_probe() -> None:
    """Neither one from before the outage nor one that waits for the look at the server: nobody else is let through."""
    with rude(Reply(after_s=0.6)) as server:
        served = Served(server.url, "vlm", 5)
        served.breaker = Breaker(failures=1, open_s=0.01)

        async def cross() -> str:
            old = asyncio.create_task(served.request("POST", "/", dict, b"{}"))
            await asyncio.sleep(0.05)
            served.breaker.failed(time.monotonic())
            await asyncio.sleep(0.05)
            late = asyncio.create_task(served.request("POST", "/", dict, b"{}"))
            await asyncio.sleep(0.05)
            states = [served.breaker.state]
            for task in (old, late):
                task.cancel()
                await asyncio.wait([task])
                states.append(served.breaker.state)
            return " ".join(states)

        assert wait_for(cross()) == "half-open half-open half-open"
    assert len(server.asked) == 2
