"""Whether the server of a tier that sleeps is asleep: asked for what it says of itself, and not of its answers."""

import time

from msgspec import Struct

from workers.engines import EngineAwayError
from workers.served import MistakenError, Served

#: It is asked this often, while photos come.
LOOK_S = 1.0


class AsleepError(EngineAwayError):
    """The server sleeps: its items come again, whatever the tier does without a server."""


class Sleep:
    """Of one server. In the background loop."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._asleep, self._looked_s = False, -LOOK_S

    async def see_awake(self) -> None:
        """Looks now and then.

        Raises:
            AsleepError: asked, it would fail.
            MistakenError: as look().
        """
        if time.monotonic() >= self._looked_s + LOOK_S:
            await self.look()
        elif self._asleep:
            raise AsleepError(f"{self._served.url} sleeps")

    async def look(self) -> None:
        """Looks now.

        Raises:
            AsleepError: it sleeps, or does not say: it is on its way into sleep or out of it, or it starts anew.
            MistakenError: it has no such word.
        """
        self._looked_s = time.monotonic()
        try:
            asleep = (await self._served.look("/is_sleeping", _Sleeping)).is_sleeping
        except MistakenError:
            raise
        except EngineAwayError as away:
            self._asleep = True
            raise AsleepError(str(away)) from None
        woke, self._asleep = self._asleep and not asleep, asleep
        if asleep:
            raise AsleepError(f"{self._served.url} sleeps")
        if woke:
            # What it did not answer in its sleep says nothing of it now.
            self._served.breaker.answered()


class _Sleeping(Struct, frozen=True):
    is_sleeping: bool
