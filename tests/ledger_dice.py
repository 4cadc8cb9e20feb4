"""What may happen to photos, by dice: at intake, and at a tier."""

import random
from collections.abc import Sequence

from msgspec.structs import replace

from routing.batches import again, item_batch, verdict_batch
from routing.messages import UNLABELLED, Child, Claimed, Item, Verdict, decode_items
from tests.ledgers import FIRST, SECOND, judged


def intake(items: Sequence[Item], lane: str, now_ms: int, dice: random.Random) -> list[Child]:
    """Admits photos as a producer does: some are bad, some unlabelled, some batches in haste or for a tier of old."""
    good: list[Item] = []
    bad: list[Verdict] = []
    deadline_ms = now_ms + 300 if dice.random() < 0.2 else 0
    for item in items:
        if dice.random() < 0.2:
            bad.append(judged(item, None))
        else:
            label = dice.choice((1, 1, 1, UNLABELLED))
            good.append(replace(item, label=label, deadline_ms=deadline_ms))
    cut = dice.randint(0, len(good))
    children = [
        item_batch(part, dice.choice((FIRST, FIRST, FIRST, "old")), lane) for part in (good[:cut], good[cut:]) if part
    ]
    return [*children, *([verdict_batch(bad, lane)] if bad else [])]


def outcome(parents: Sequence[Claimed], now_ms: int, dice: random.Random) -> list[Child]:
    """Works batches as a tier does: each photo ends, climbs, or is tried again after a pause, alone or with others."""
    lane = parents[0].lane
    if len(parents) == 1 and dice.random() < 0.2:
        return [again(parents[0], FIRST, now_ms + dice.choice((0, 50, 400)))]
    ends: list[Verdict] = []
    climbs: list[Item] = []
    retries: list[Child] = []
    for item in (item for parent in parents for item in decode_items(parent.blob)):
        way = dice.random()
        if way < 0.45:
            ends.append(judged(item, dice.choice((0.1, 0.9))))
        elif way < 0.55:
            ends.append(judged(item, None))
        elif way < 0.85:
            climbs.append(item)
        else:
            retries.append(item_batch([item], FIRST, lane, now_ms + 100))
    return [
        *retries,
        *([verdict_batch(ends, lane)] if ends else []),
        *([item_batch(climbs, SECOND, lane)] if climbs else []),
    ]
