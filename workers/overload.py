"""Overload: whether more waits at a tier than its profile allows. Escalation is never refused; it is not asked for."""

import time
from collections.abc import Callable
from typing import Any

from configs.profile import Tier
from routing.ledger import PREFIX, Ledger

#: The count is asked for at most this often; within it a tier may go over its mark.
LOOK_S = 1.0


class Mark:
    """A tier's mark.

    Args:
        ledger: where items wait.
        tier: one that items would climb to.
    """

    def __init__(self, ledger: Ledger, tier: Tier, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self.tier = tier
        self._clock_s = clock_s
        self._looked_s = -LOOK_S
        self._over = False

    def over(self) -> bool:
        """Whether more items wait there than ``max_waiting``, as of the last second."""
        tier = self.tier
        if not tier.max_waiting:
            return False
        if self._clock_s() - self._looked_s >= LOOK_S:
            counts: Any = self._ledger.server.hmget(PREFIX + "use", f"ready:{tier.name}", f"later:{tier.name}")
            self._over = sum(int(count or 0) for count in counts) > tier.max_waiting
            self._looked_s = self._clock_s()
        return self._over
