"""One call for all who want it at the same time: whoever comes while it is under way waits for what becomes of it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """For the background loop.

    Args:
        call: it ends by itself; its deadline is that of whoever began it.
    """

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._call = call
        self._running: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """What the call returns, the one under way if there is one. Raises what it does."""
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        # Who gives up waiting does not end it for the others.
        return await asyncio.shield(self._running)

    async def _run(self) -> T:
        try:
            return await self._call()
        finally:
            self._running = None
