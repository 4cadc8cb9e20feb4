"""The other side of workers.engines.apart: an engine in an interpreter of its own, one request after another."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, Any

from PIL import Image

from configs.errors import ConfigError
from workers.engines import DeviceMemoryError, Engine, EngineAwayError, build
from workers.engines.apart_frames import (
    Ask,
    Boxes,
    Depths,
    Done,
    Failed,
    Load,
    Photo,
    Reply,
    Request,
    Scores,
    receive,
    send,
)

#: Photos prepared at once, as in the threads of a worker.
THREADS = 3


def main() -> None:
    """Serves until the parent closes the pipe or ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a library prints must not be taken for a reply.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Ctrl-C and a service manager reach every process of the group; the parent's photos in hand still need this one.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    waiting: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, waiting), name="requests", daemon=True).start()
    server = _Server()
    while True:
        send(replies, server.answer(waiting.get()))


def _read(requests: IO[bytes], waiting: SimpleQueue[Request]) -> None:
    while True:
        try:
            # A union is no type to mypy.
            waiting.put(receive(requests, Request))  # type: ignore[arg-type]
        except EOFError:
            # At once, in the middle of whatever the device does: nobody waits for it any more.
            os._exit(0)


class _Server:
    """Holds the engine."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._threads = ThreadPoolExecutor(THREADS)

    def answer(self, request: Request) -> Reply:
        """The reply to a request; what the engine raises is one too."""
        try:
            return self._do(request)
        except ConfigError as error:
            return Failed("config", str(error))
        except DeviceMemoryError as error:
            return Failed("memory", str(error))
        except EngineAwayError as error:
            return Failed("away", str(error))
        except Exception as error:  # noqa: BLE001 - handed to the parent, which has the photos
            traceback.print_exc(file=sys.stderr)
            return Failed("other", f"{type(error).__name__}: {error}")

    def _do(self, request: Request) -> Reply:
        if isinstance(request, Load):
            self._engine = build(request.spec, request.runtime)
            self._engine.load()
            return Done()
        if self._engine is None:
            raise RuntimeError("nothing was loaded")
        if isinstance(request, Ask):
            return self._look(self._engine, request)
        self._engine.warm_up()
        return Done()

    def _look(self, engine: Engine, request: Ask) -> Reply:
        verb = getattr(engine, request.what, None)
        if verb is None:
            raise ConfigError(f"engine {type(engine).__module__} cannot {request.what}")
        prepared = list(self._threads.map(lambda photo: _prepared(engine, photo), request.photos))
        there = [one for one in prepared if one is not None]
        results = iter(_as_many(verb(there), there)) if there else iter(())
        found = [None if one is None else next(results) for one in prepared]
        if request.what == "score":
            return Scores(found)
        return Boxes(found) if request.what == "detect" else Depths(found)


def _prepared(engine: Engine, photo: Photo) -> Any:
    return engine.prepare(Image.frombytes("RGB", photo.size_px, photo.rgb), photo.shot)


def _as_many(results: Sequence[Any], inputs: Sequence[Any]) -> Sequence[Any]:
    """Results, one an input."""
    if len(results) != len(inputs):
        raise RuntimeError(f"the engine returned {len(results)} results for {len(inputs)} inputs")
    return results
