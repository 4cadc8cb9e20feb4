"""Whether a server that was away is back: one looks, and whoever comes meanwhile waits for what it sees.

So no photo is the probe, and none of those beside it loses its vote to one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from workers.breaker import Breaker


class Recovery:
    """Of one server; for the background loop."""

    def __init__(self) -> None:
        self._looking: asyncio.Task[None] | None = None

    async def over(self, breaker: Breaker, look: Callable[[], Awaitable[None]]) -> bool:
        """Whether the server may be asked.

        Args:
            breaker: of the server.
            look: tells the breaker whether the server is there, soon and in any case; it raises nothing.
        """
        if breaker.state != "closed":
            if self._looking is None and breaker.admits(time.monotonic()):
                self._looking = asyncio.create_task(self._look(look))
            if self._looking is not None:
                # Who gives up waiting does not end it for the others.
                await asyncio.shield(self._looking)
        return breaker.state == "closed"

    async def _look(self, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        finally:
            self._looking = None
