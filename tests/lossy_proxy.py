"""A proxy before a server that loses replies: the request got through, its answer did not, or only half of it."""

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

from ops.server import HOST, EmbeddedServer
from routing.ledger import Ledger

_SCRIPT = re.compile(rb"EVALSHA\r\n\$40\r\n([0-9a-f]{40})\r\n")
#: Everything that is no verb of the ledger: what Celery and the photo store ask.
OTHER = "other"


class LossyProxy:
    """Loses replies by dice, each with the connection that it would have come by.

    Args:
        server: behind it.
        odds: how likely a reply is lost, by verb, OTHER among them; 0 for those not named.
        seed: of the dice.
    """

    def __init__(self, server: EmbeddedServer, odds: Mapping[str, float], seed: int = 0) -> None:
        self._server = server
        self._odds = odds
        self._dice = random.Random(seed)
        with server.address.connect() as client:
            self._verbs = {script.sha.encode(): verb for verb, script in Ledger(client)._scripts.items()}
        #: Replies lost so far, by verb.
        self.lost: Counter[str] = Counter()
        #: While a verb is named here every reply to it is lost.
        self.silenced: frozenset[str] = frozenset()
        self._port = 0
        self._open = 0
        self._errors: list[Exception] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self._idle = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="proxy")

    @property
    def url(self) -> str:
        """The server's, by way of this proxy."""
        return self._server.url.replace(f":{self._server.port}/", f":{self._port}/")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()
        if self._errors:
            raise ExceptionGroup("the proxy's own", self._errors)

    async def _serve(self) -> None:
        proxy = await asyncio.start_server(self._relay, HOST, 0)
        self._port = proxy.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        proxy.close()
        if self._open:
            await self._idle.wait()

    async def _relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it or a reply is lost."""
        try:
            server, to_server = await asyncio.open_connection(HOST, self._server.port)
        except OSError:
            to_client.close()
            return
        asked = [OTHER]

        async def requests() -> None:
            while data := await client.read(1 << 16):
                found = _SCRIPT.findall(data)
                # Celery has scripts too.
                asked[0] = self._verbs.get(found[-1], OTHER) if found else OTHER
                to_server.write(data)
                await to_server.drain()

        async def replies() -> None:
            while data := await server.read(1 << 16):
                if self._loses(asked[0]):
                    # Mid-reply, or before it.
                    to_client.write(data[: self._dice.choice((0, len(data) // 2))])
                    return
                to_client.write(data)
                await to_client.drain()

        ways: list[asyncio.Task[Any]] = [
            asyncio.create_task(requests()),
            asyncio.create_task(replies()),
            asyncio.create_task(self._over.wait()),
        ]
        self._open += 1
        self._idle.clear()
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        ends = await asyncio.gather(*ways, return_exceptions=True)
        self._errors += [end for end in ends if isinstance(end, Exception) and not isinstance(end, OSError)]
        for writer in (to_server, to_client):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        self._open -= 1
        if not self._open:
            self._idle.set()

    def _loses(self, verb: str) -> bool:
        if verb in self.silenced or self._dice.random() < self._odds.get(verb, 0.0):
            self.lost[verb] += 1
            return True
        return False
