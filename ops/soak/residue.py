"""What a drained fleet leaves on its server: every key by kind, and which of them may stay."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis
from msgspec import Struct

from routing.ledger import PREFIX


class Kind(Struct):
    """Keys of one kind."""

    keys: int = 0
    #: Fields, members and entries in all of them; 1 for a string.
    entries: int = 0


def residue(server: redis.Redis) -> dict[str, Kind]:
    """Every key by kind: the ledger's by the first word behind its prefix, those of Celery as "celery:" and their name.

    It walks all keys: for a drained server only.
    """
    kinds: dict[str, Kind] = {}
    sizes: dict[bytes, Callable[[bytes], Any]] = {
        b"hash": server.hlen,
        b"zset": server.zcard,
        b"set": server.scard,
        b"list": server.llen,
    }
    keys: Iterable[bytes] = server.scan_iter(count=1000)
    for raw_key in keys:
        key = raw_key.decode()
        name = key.removeprefix(PREFIX).partition(":")[0] if key.startswith(PREFIX) else f"celery:{key}"
        kind = kinds.setdefault(name, Kind())
        kind.keys += 1
        type_: Any = server.type(raw_key)
        kind.entries += int(sizes[type_](raw_key)) if type_ in sizes else 1
    return dict(sorted(kinds.items()))


def too_many(kinds: Mapping[str, Kind], *, sources: int, scopes: int, tiers: int) -> dict[str, int]:
    """Keys of the ledger that outlived the photos that passed, by kind; none: only what must stay is left."""
    stay = {
        "src": sources,
        "win": scopes,
        "cnt": scopes,
        "tally": tiers,
        **dict.fromkeys(("use", "attended", "turns", "rings", "acct", "profile"), 1),
    }
    surplus = {name: kind.keys - stay.get(name, 0) for name, kind in kinds.items() if not name.startswith("celery:")}
    return {name: n for name, n in surplus.items() if n > 0}
