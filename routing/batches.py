"""Children for the ledger: the batches that admit and settle write."""

from collections.abc import Sequence

from configs.profile import COLLECTOR
from routing.ledger import new_id
from routing.messages import Child, Claimed, Item, Verdict, encode

#: A batch that this process cannot read waits this long before the next one tries.
UNREADABLE_MS = 60_000


def item_batch(items: Sequence[Item], tier: str, lane: str, not_before_ms: int = 0, *, apart: bool = False) -> Child:
    """Items on their way to a tier; ``apart``: one at a time, for one of them is suspected."""
    deadlines = [item.deadline_ms for item in items if item.deadline_ms]
    return Child(
        bid=new_id(),
        tier=tier,
        lane=lane,
        n=len(items),
        stored_bytes=sum([item.stored_bytes for item in items]),
        blob=encode(items),
        deadline_ms=min(deadlines, default=0),
        not_before_ms=not_before_ms,
        apart=apart,
    )


def verdict_batch(verdicts: Sequence[Verdict], lane: str) -> Child:
    """Verdicts on their way to the collector."""
    return Child(
        bid=new_id(),
        tier=COLLECTOR,
        lane=lane,
        n=len(verdicts),
        stored_bytes=sum([v.item.stored_bytes for v in verdicts]),
        blob=encode(verdicts),
    )


def again(batch: Claimed, stop: str, not_before_ms: int) -> Child:
    """A batch as it came, to be claimed again later: by somebody who can read it."""
    return Child(
        bid=new_id(),
        tier=stop,
        lane=batch.lane,
        n=batch.n,
        stored_bytes=batch.stored_bytes,
        blob=batch.blob,
        not_before_ms=not_before_ms,
    )
