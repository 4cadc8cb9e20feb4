"""Which of the tiers that share a device is awake: a pure decision over what waits for each of them.

Of the tiers that sleep at most one is awake on a device at a time. A tier asks for its devices while it sleeps and
enough waits for it, or something has waited for long enough, or its server does not run and wants its start, for which
vLLM must find its memory free. Who has asked for longest goes first, and nobody takes a device that he waits for: a
tier on two devices would never see both free. Awake, a tier stays so for its ``awake_s`` at least, and then until
somebody asks: so of two that always have work each has its turn, and nobody waits for more than everybody's turns.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

#: "off": its server does not run, and may start once its devices are free. "moving": it starts, wakes or falls asleep,
#: and has its devices meanwhile. "away": it neither has devices nor wants them.
Place = Literal["off", "asleep", "moving", "awake", "away"]


class Sleeper(Struct, frozen=True):
    """A tier that sleeps, at one moment. Times are monotonic seconds."""

    tier: str
    devices: frozenset[str]
    place: Place
    #: Since when it is there; minus infinity: it came up only to be put to sleep, and has no turn.
    since_s: float
    #: Items, and since when there are any.
    waiting: int
    waiting_since_s: float
    wake_items: int
    wake_after_s: float
    awake_s: float

    @property
    def asked_s(self) -> float:
        """Since when it asks, if it does."""
        return self.since_s if self.place == "off" else self.waiting_since_s

    def asks(self, now_s: float) -> bool:
        """Whether it wants its devices."""
        if self.place != "asleep":
            return self.place == "off"
        long = self.waiting > 0 and now_s - self.waiting_since_s >= self.wake_after_s
        return long or self.waiting >= self.wake_items

    def yields(self, now_s: float) -> bool:
        """Whether it has had its turn."""
        return self.place == "awake" and now_s - self.since_s >= self.awake_s


class Moves(Struct, frozen=True):
    """What is to be done now, by tier: both at once never concern the same device."""

    wake: tuple[str, ...] = ()
    sleep: tuple[str, ...] = ()


def choose(sleepers: Sequence[Sleeper], now_s: float) -> Moves:
    """Who wakes, who falls asleep; to be asked again when that is done, and now and again.

    Args:
        sleepers: all of a profile, in its order.
        now_s: monotonic.
    """
    wake: list[str] = []
    sleep: list[str] = []
    taken: set[str] = set()
    for one in sorted((s for s in sleepers if s.asks(now_s)), key=lambda s: s.asked_s):
        if one.devices & taken:
            continue
        # Even where it must wait: whoever asked later may have the devices after it.
        taken |= one.devices
        holders = [s for s in sleepers if s.place in {"moving", "awake"} and s.devices & one.devices]
        if not holders:
            wake.append(one.tier)
        elif all(holder.yields(now_s) for holder in holders):
            sleep += [holder.tier for holder in holders if holder.tier not in sleep]
    return Moves(tuple(wake), tuple(sleep))
