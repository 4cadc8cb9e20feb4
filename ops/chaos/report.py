"""What a campaign found, as var/chaos.json has it."""

import statistics
from collections.abc import Sequence

from msgspec import Struct


class Recovery(Struct, frozen=True):
    """Seconds from a worker's death until its batches were at work again, or settled."""

    median: float
    max: float
    #: How many deaths of processes that held batches.
    deaths: int


def recovery(seconds: Sequence[float]) -> Recovery:
    """Median and longest; zeros without any."""
    if not seconds:
        return Recovery(0.0, 0.0, 0)
    return Recovery(round(statistics.median(seconds), 2), round(max(seconds), 2), len(seconds))


class Result(Struct, frozen=True, kw_only=True):
    """One fleet under kills."""

    admitted: int
    verdicts: int
    quarantined: int = 0
    lost: int
    counted_twice: int
    #: Settles and commits that the ledger refused, for another held the batch by then.
    fenced: int = 0
    #: By window, or "random:PROCESS".
    kills: dict[str, int]
    #: Of deaths whose recovery no other kill at that stop, or of the server, disturbed.
    recovery_s: Recovery = recovery(())
    #: Of the others.
    recovery_disturbed_s: Recovery = recovery(())
    seconds: float
    seed: int
    fsync: str
    #: Audits of the whole ledger (invariants A to C), one after each kill and one at the end.
    audits: int = 0
    #: Positions that the server had acknowledged and a kill of it undid; their source was fed again.
    undone_by_server: int = 0
    #: Owners found dead, and claims whose reply was lost.
    reaped: int = 0
    reconciled: int = 0
    #: One line for each disagreement.
    problems: list[str] = []

    @property
    def passed(self) -> bool:
        """Nothing lost, nothing twice, nothing that disagrees."""
        return not self.problems and self.lost == 0 and self.counted_twice == 0


class Report(Result, frozen=True, kw_only=True):
    """var/chaos.json: the campaign under fsync always, and with it the shorter one under everysec and the twin.

    ``problems`` are those of all three; ``seconds`` are the campaign's own.
    """

    everysec: Result
    twin: Result
    all_seconds: float

    @property
    def passed(self) -> bool:
        """Both campaigns lost nothing, counted nothing twice, and nothing disagrees."""
        return not self.problems and all(r.lost == r.counted_twice == 0 for r in (self, self.everysec))
