"""Whether the server of a tier that sleeps is asleep: asked for what it says of itself, and not of its answers."""

import time

from msgspec import Struct

from workers.engines import EngineAwayError
from workers.served import MistakenError, Served
from workers.shared import Shared

#: It is asked this often, while photos come.
LOOK_S = 1.0
#: It may be on its way into sleep or out of it for so long without a word, as long as ops.residency_control lets it.
SILENT_S = 300.0


class AsleepError(EngineAwayError):
    """The server sleeps: its items come again, whatever the tier does without a server."""


class Sleep:
    """Of one server. In the background loop."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._looked_s = -LOOK_S
        #: Why it is not asked, as it was last seen; None: it is awake.
        self._why: EngineAwayError | None = None
        #: Since when it has not said whether it sleeps; None: it has.
        self._silent_s: float | None = None
        self._look = Shared(self._look_once)

    async def see_awake(self) -> None:
        """Looks now and then.

        Raises:
            AsleepError, EngineAwayError, MistakenError: as look().
        """
        if time.monotonic() >= self._looked_s + LOOK_S:
            await self._look()
        self._require_awake()

    async def look(self) -> None:
        """Looks now; who comes meanwhile waits for the same look.

        Raises:
            AsleepError: it sleeps, or does not say: it is on its way into sleep or out of it, or it starts anew.
            EngineAwayError: it has not said for SILENT_S.
            MistakenError: it has no such word.
        """
        await self._look()
        self._require_awake()

    def _require_awake(self) -> None:
        if self._why is not None:
            # A new one for each who asks: a traceback grows with every raise.
            raise type(self._why)(*self._why.args)

    async def _look_once(self) -> None:
        was, self._why = self._why, await self._seen()
        self._looked_s = time.monotonic()
        if was is not None and self._why is None:
            # What it did not answer in its sleep says nothing of it now.
            self._served.breaker.answered()

    async def _seen(self) -> EngineAwayError | None:
        try:
            asleep = (await self._served.look("/is_sleeping", _Sleeping)).is_sleeping
        except MistakenError as mistaken:
            self._silent_s = None
            return mistaken
        except EngineAwayError as away:
            now_s = time.monotonic()
            self._silent_s = now_s if self._silent_s is None else self._silent_s
            return AsleepError(*away.args) if now_s < self._silent_s + SILENT_S else away
        self._silent_s = None
        return AsleepError(f"{self._served.url} sleeps") if asleep else None


class _Sleeping(Struct, frozen=True):
    is_sleeping: bool
