"""Which process is killed next, where: drawn from a seed before the campaign begins."""

import random
from collections.abc import Sequence

from msgspec import Struct

from routing.failpoints import Window

#: Kills at each named window, in a campaign that is large enough for as many at random moments.
AT_EACH_WINDOW = 12

SERVER = "server"


class Kill(Struct, frozen=True):
    """One kill -9: at a window, by whichever process comes there first, or of a named process at any moment."""

    #: None: at a random moment.
    window: Window | None
    #: A process's name; "" where the window decides.
    target: str = ""

    @property
    def kind(self) -> str:
        """How the report counts it."""
        return str(self.window) if self.window else f"random:{self.target}"


def draw_kills(seed: int, total: int, targets: Sequence[str]) -> list[Kill]:
    """The kills in their order: those at the named windows, and the rest over ``targets`` in equal shares.

    Args:
        seed: same seed, same kills.
        total: how many.
        targets: names of processes, the server's among them.
    """
    dice = random.Random(seed)  # noqa: S311 - a plan, no secret
    kills = [Kill(window) for window in Window for _ in range(min(AT_EACH_WINDOW, total // (2 * len(Window))))]
    kills += [Kill(None, targets[i % len(targets)]) for i in range(total - len(kills))]
    dice.shuffle(kills)
    return kills
