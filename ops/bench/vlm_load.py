"""The bare client of a VLM server: processes that ask without a pause, over sockets of their own, about new photos.

As little as can be between the photo and the server: requests are made before the clock runs, a reply is read by its
length, and of its text only what is counted is decoded.
"""

import asyncio
import base64
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from statistics import median
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from configs.errors import ServerError, UsageError
from ops.bench.noise import fresh, jpeg
from workers.question import Question

_PREPARE_S = 300.0
#: What is in flight when the time is up has this long to come back.
_DRAIN_S = 60.0


class Ask(Struct, frozen=True):
    """What is asked, by all processes together."""

    url: str
    #: As a tier's own engine asks.
    question: Question
    side_px: int
    #: Questions at a time.
    in_flight: int
    processes: int
    warm_up_s: float
    window_s: float
    windows: int
    #: Photos are made for so many answers a second.
    most_per_s: float

    @property
    def seconds(self) -> float:
        """From the first question to the end of the last window."""
        return self.warm_up_s + self.window_s * self.windows

    @property
    def photos_of_one(self) -> int:
        """That one process needs at most."""
        return int(self.seconds * self.most_per_s / self.processes) + self.in_flight


class Heard(Struct, frozen=True):
    """What came of it."""

    #: Of each window.
    photos_per_s: tuple[float, ...]
    #: Half and 99 of 100 were answered within; of the windows.
    p50_ms: float
    p99_ms: float
    answered: int
    failed: int
    #: The first failure, in the server's words.
    failure: str
    #: Of one question; all have the same length, or it is the largest.
    prompt_tokens: int
    #: CPU time of the clients, as cores kept busy.
    client_cores: float
    #: Made before the clock ran; bytes of one, on average.
    photos: int
    photo_bytes: int

    @property
    def rate(self) -> float:
        """The median of the windows."""
        return median(self.photos_per_s) if self.photos_per_s else 0.0


class _Usage(Struct, frozen=True):
    prompt_tokens: int = 0


class _Reply(Struct, frozen=True):
    usage: _Usage = _Usage()


class _Part(Struct):
    """One process' share."""

    #: CLOCK_MONOTONIC of each answer, which all processes of a host share, and how long it took.
    ends_s: list[float] = []
    took_s: list[float] = []
    failed: int = 0
    failure: str = ""
    prompt_tokens: int = 0
    cpu_s: float = 0.0
    #: When it had no photo left, or the time was up.
    until_s: float = 0.0
    photos: int = 0
    photo_bytes: int = 0


def listen(ask: Ask, first: int | None = None) -> Heard:
    """Asks for as long as ``ask`` says, about photos from seed ``first`` on; without it, photos that nobody has seen.

    Raises:
        ServerError: a process died, or no question was answered.
        UsageError: it answered faster than photos were made for.
    """
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    first = fresh(ask.photos_of_one * ask.processes) if first is None else first
    for i in range(ask.processes):
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(msgspec.json.encode(ask), i, first, theirs), daemon=True)
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    try:
        for pipe in pipes:
            _receive(pipe, _PREPARE_S)
        begin_s = time.monotonic() + 0.2
        for pipe in pipes:
            pipe.send(begin_s)
        parts = [msgspec.json.decode(_receive(pipe, ask.seconds + 2 * _DRAIN_S), type=_Part) for pipe in pipes]
    finally:
        for child in children:
            child.join(5)
            child.kill()
    return _heard(ask, begin_s, parts)


def _receive(pipe: Connection, within_s: float) -> bytes:
    try:
        if pipe.poll(within_s):
            said: bytes = pipe.recv()
            return said
    except EOFError:
        pass
    raise ServerError(f"a client process of the benchmark died, or said nothing for {within_s:g} s")


def _heard(ask: Ask, begin_s: float, parts: Sequence[_Part]) -> Heard:
    begun_s = begin_s + ask.warm_up_s
    # A window counts when every process had photos until its end.
    until_s = min(part.until_s for part in parts)
    pairs = sorted(pair for part in parts for pair in zip(part.ends_s, part.took_s, strict=True))
    rates = []
    for i in range(ask.windows):
        start_s, end_s = begun_s + i * ask.window_s, begun_s + (i + 1) * ask.window_s
        if end_s <= until_s + 1e-6:
            rates.append(sum(start_s < end <= end_s for end, _ in pairs) / ask.window_s)
    took = sorted(took for end, took in pairs if end > begun_s)
    failure = next((part.failure for part in parts if part.failure), "")
    if not pairs:
        raise ServerError(f"no question was answered: {failure or 'none failed either'}")
    if not rates:
        raise UsageError(f"{ask.most_per_s:g} photos a second are too few, they ran out: raise --most-per-s")
    last_s = pairs[-1][0]
    photos = sum(part.photos for part in parts)
    return Heard(
        photos_per_s=tuple(round(rate, 2) for rate in rates),
        p50_ms=round(took[len(took) // 2] * 1000, 1) if took else 0.0,
        p99_ms=round(took[int(len(took) * 0.99)] * 1000, 1) if took else 0.0,
        answered=len(pairs),
        failed=sum(part.failed for part in parts),
        failure=failure,
        prompt_tokens=max(part.prompt_tokens for part in parts),
        client_cores=round(sum(part.cpu_s for part in parts) / (last_s - begin_s), 2),
        photos=photos,
        photo_bytes=sum(part.photo_bytes for part in parts) // max(photos, 1),
    )


def _child(order: bytes, index: int, first: int, pipe: Connection) -> None:
    """One process: makes its photos, says so, waits for the common start, asks."""
    ask = msgspec.json.decode(order, type=Ask)
    count = ask.photos_of_one
    numbers = range(first + index * count, first + (index + 1) * count)
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // ask.processes)) as pool:
        photos = list(pool.map(lambda number: jpeg(number, ask.side_px), numbers))
    requests = [_request(ask, photo) for photo in photos]
    part = _Part(photos=count, photo_bytes=sum(map(len, photos)))
    photos.clear()
    pipe.send(b"ready")
    begin_s: float = pipe.recv()
    connections = ask.in_flight // ask.processes + (index < ask.in_flight % ask.processes)
    asyncio.run(_drive(ask, requests, connections, begin_s, part))
    pipe.send(msgspec.json.encode(part))


def _request(ask: Ask, photo: bytes) -> bytes:
    text = ask.question.about(base64.b64encode(photo))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(ask.url).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


async def _drive(ask: Ask, requests: Sequence[bytes], connections: int, begin_s: float, part: _Part) -> None:
    end_s = begin_s + ask.seconds
    left = iter(requests)
    await asyncio.sleep(begin_s - time.monotonic())
    before = resource.getrusage(resource.RUSAGE_SELF)
    tasks = [asyncio.create_task(_connection(ask.url, left, end_s, part)) for _ in range(connections)]
    _, waiting = await asyncio.wait(tasks, timeout=ask.seconds + _DRAIN_S)
    for task in waiting:
        part.failed += 1
        part.failure = part.failure or f"no answer within {_DRAIN_S:g} s of the end"
        task.cancel()
    for task in set(tasks) - waiting:
        # What is wrong with the benchmark itself is not a failed question.
        task.result()
    after = resource.getrusage(resource.RUSAGE_SELF)
    part.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    part.until_s = part.until_s or end_s


async def _connection(url: str, left: Iterator[bytes], end_s: float, part: _Part) -> None:
    """One question after another on one socket; a socket that breaks is opened again."""
    host = urlsplit(url)
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while (begun_s := time.monotonic()) < end_s:
        request = next(left, None)
        if request is None:
            part.until_s = min(part.until_s or end_s, begun_s)
            break
        try:
            stream = stream or await asyncio.open_connection(host.hostname, host.port)
            status, text = await _ask(*stream, request)
        except (OSError, EOFError) as error:
            stream = None
            _fail(part, f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)
            continue
        if status != 200:
            _fail(part, f"{status}: {text[:300].decode(errors='replace')}")
            continue
        ended_s = time.monotonic()
        part.ends_s.append(ended_s)
        part.took_s.append(ended_s - begun_s)
        reply = msgspec.json.decode(text, type=_Reply)
        part.prompt_tokens = max(part.prompt_tokens, reply.usage.prompt_tokens)
    if stream:
        stream[1].close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Status and body of one exchange; the server says the body's length."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


def _fail(part: _Part, why: str) -> None:
    part.failed += 1
    part.failure = part.failure or why
