"""One event loop for the process, in a thread of its own: whoever asks servers asks them there."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def background() -> asyncio.AbstractEventLoop:
    """The loop; it runs until the process ends."""
    with _lock:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(target=_loops[0].run_forever, name="asking", daemon=True).start()
        return _loops[0]


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, run in the background while this thread waits.

    Raises:
        Exception: what it raised.
    """
    return asyncio.run_coroutine_threadsafe(coroutine, background()).result()
