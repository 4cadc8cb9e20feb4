"""A server that says whether it sleeps, and an engine that asks it, without vLLM."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from configs.model import load_model
from configs.serving import Server
from workers.asking import Asking
from workers.asleep import Sleep
from workers.background import wait_for
from workers.engines import Runtime
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


class Sleeper:
    """A server that says whether it sleeps, and answers questions only while it is awake: vLLM leaves them waiting."""

    def __init__(self) -> None:
        self.asleep = True
        self.silent = False
        #: It fails on every question.
        self.fails = False
        self.questions = 0
        #: All requests.
        self.asked = 0
        #: Where it gives log-probabilities: with these fields in a question; without any it does not.
        self.fields = {"logprob_token_ids", "allowed_token_ids", "top_logprobs"}
        #: A question with one of these is refused.
        self.refuses: set[str] = set()

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
        question = await request.json()
        if self.fails or self.refuses & set(question):
            return web.Response(status=500 if self.fails else 400, text="warming up, or not supported")
        if not self.fields & set(question):
            return web.json_response({"choices": [{"message": {"content": "Yes"}}]})
        # Of allowed tokens all probability.
        no = -2.3522 if "allowed_token_ids" in question else -3.0
        content = [{"token": f"token_id:{i}", "logprob": p} for i, p in ((1, -0.1), (2, no))]
        logprobs = {"content": [content[0] | {"top_logprobs": content}]}
        return web.json_response({"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}]})


@contextmanager
def sleeper(*, asleep: bool = True, port: int = 0) -> Iterator[tuple[Sleeper, str]]:
    """Such a server and its URL, for as long as the context lasts."""
    server = Sleeper()
    server.asleep = asleep
    url = wait_for(server.start(port))
    try:
        yield server, url
    finally:
        server.asleep = server.silent = False
        wait_for(server.runner.cleanup())
