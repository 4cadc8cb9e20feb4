"""A small fleet's moves on a real ledger, in the words of the tests: open, admit, work, collect."""

from collections.abc import Sequence

import msgspec
import redis

from configs.profile import COLLECTOR
from routing.answers import Committed, Standing
from routing.batches import item_batch, verdict_batch
from routing.decision import void
from routing.ledger import PREFIX, Ledger, new_id
from routing.messages import Child, Claimed, Item, Verdict, decode_items, decode_verdicts

FIRST, SECOND = "first", "second"
MANY = 1_000_000
#: Some instant, far from 0: times in the ledger have 16 digits.
START_US = 1_760_000_000_000_000


class Clock:
    """Time as a test says, in microseconds."""

    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> int:
        return self.now_us

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def step_ms(self, by: int) -> None:
        self.now_us += by * 1000


def photo(source: str, position: int, **fields: object) -> Item:
    """An item without bytes in the store."""
    blank = Item(source=source, position=position, origin="o", label=1, sha256=b"", stored_bytes=0, size_px=(8, 8))
    return msgspec.structs.replace(blank, **fields)


def photos(source: str, start: int, end: int, **fields: object) -> list[Item]:
    """Items of consecutive positions."""
    return [photo(source, position, **fields) for position in range(start, end)]


def judged(item: Item, p: float | None = 0.9) -> Verdict:
    """A verdict, or a void without a p."""
    return void(item, "test", 0, "bad") if p is None else Verdict(item=item, p=p, tier=FIRST)


def admit(
    ledger: Ledger, source: str, end: int, *, size: int = 4, lane: str = "bulk", tier: str = FIRST, **fields: object
) -> list[Child]:
    """Opens the source and admits it up to ``end``; the batches that it wrote."""
    epoch, start = ledger.open(source, lane)
    children = [
        item_batch(photos(source, i, min(i + size, end), **fields), tier, lane) for i in range(start, end, size)
    ]
    ledger.admit(source, epoch, start, end, lane, children, stored=[], max_items=MANY, max_bytes=MANY)
    return children


def joined(ledger: Ledger) -> str:
    """A new owner."""
    owner = new_id()
    ledger.enlist(owner, "profile")
    return owner


def take(ledger: Ledger, owner: str, stop: str = FIRST, max_items: int = MANY) -> list[Claimed]:
    """A claim under a new token."""
    return ledger.claim(stop, owner, new_id(), max_items).batches


def to_collector(ledger: Ledger, owner: str, batches: Sequence[Claimed], p: float | None = 0.9) -> None:
    """Settles batches of items as verdicts, all in one batch."""
    items = [item for batch in batches for item in decode_items(batch.blob)]
    ledger.settle(owner, batches, [verdict_batch([judged(item, p) for item in items], batches[0].lane)])


def standing(source: str, verdicts: Sequence[Verdict], scopes: str = "|all|subnet") -> Standing:
    """A source's part of a commit: a photo labelled 1 counts as 3 or 2, a void as -, an unlabelled one in no scope."""
    part = Standing(source, [], [], [], [], [], [])
    for verdict in verdicts:
        item = verdict.item
        mark = "-" if verdict.p is None else "3" if verdict.p > 0.5 else "2"
        packed = "-" if item.label < 0 else mark + (scopes if verdict.p is not None else "|subnet")
        if item.replay:
            part.replays.append(packed)
        else:
            part.positions.append(item.position)
            part.packed.append(packed)
        if verdict.p is None:
            part.voids.append(item.position)
        if item.stored_bytes:
            (part.stored if verdict.p is not None else part.kept).append(item.position)
    return part


def commit(ledger: Ledger, owner: str, batches: Sequence[Claimed], late_after_ms: int = 1000) -> Committed:
    """Commits batches of verdicts as the collector does."""
    verdicts = [verdict for batch in batches for verdict in decode_verdicts(batch.blob)]
    sources = dict.fromkeys(verdict.item.source for verdict in verdicts)
    voids = sum(verdict.p is None for verdict in verdicts)
    return ledger.commit(
        owner,
        batches,
        [standing(source, [v for v in verdicts if v.item.source == source]) for source in sources],
        verdicts=len(verdicts) - voids,
        quarantined=voids,
        late_after_ms=late_after_ms,
        keep_s=100,
    )


def collect(ledger: Ledger, owner: str, late_after_ms: int = 1000) -> Committed:
    """Claims all verdicts and commits them."""
    return commit(ledger, owner, take(ledger, owner, COLLECTOR), late_after_ms)


def field(client: redis.Redis, key: str, name: str) -> int:
    """A count of the ledger, 0 when it is not there."""
    return int(client.hget(PREFIX + key, name) or 0)
