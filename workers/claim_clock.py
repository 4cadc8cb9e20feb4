"""The time since a claim: the server's clock at the claim, going on by this process's own."""

import math
import time
from collections.abc import Sequence

from msgspec import Struct

from routing.messages import Item


class ClaimClock(Struct, frozen=True):
    """Unix time as the server said it at the claim, going on by this process's monotonic clock."""

    claimed_ms: int
    begun_s: float

    def now_ms(self) -> int:
        """Unix time, in milliseconds."""
        return self.claimed_ms + int((time.monotonic() - self.begun_s) * 1000)

    def due_s(self, items: Sequence[Item]) -> list[float]:
        """When each item is overdue, on the monotonic clock; empty: none has a deadline."""
        if not any(item.deadline_ms for item in items):
            return []
        return [
            self.begun_s + (item.deadline_ms - self.claimed_ms) / 1000 if item.deadline_ms else math.inf
            for item in items
        ]
