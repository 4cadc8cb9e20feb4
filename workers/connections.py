"""Connections to a server, kept and used again, in the background loop."""

import asyncio
import weakref

import aiohttp

from workers.background import background, wait_for

#: One that nobody used for this long is not used again: vLLM closes it after 5 s.
KEEP_ALIVE_S = 4.0


def connections(owner: object, most: int, headers: dict[str, str]) -> aiohttp.ClientSession:
    """Those of one owner: an engine has no end of its own, so they end with the last that refers to it.

    Args:
        owner: of them.
        most: at once; who wants one more waits.
        headers: of every request.
    """
    session = wait_for(_session(most, headers))
    weakref.finalize(owner, _close, session)
    return session


async def _session(most: int, headers: dict[str, str]) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=most, keepalive_timeout=KEEP_ALIVE_S)
    return aiohttp.ClientSession(connector=connector, headers=headers)


def _close(session: aiohttp.ClientSession) -> None:
    asyncio.run_coroutine_threadsafe(session.close(), background())
