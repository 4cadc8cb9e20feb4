"""What the verbs of the ledger answer, and a source's part of a commit."""

from msgspec import Struct

from routing.messages import Claimed


class Claim(Struct, frozen=True):
    """What claim() hands out: no batch when the stop is dry."""

    owner: str
    token: str
    now_us: int
    #: Ready items that are left at the stop.
    left: int
    batches: list[Claimed]


class Tick(Struct, frozen=True):
    """What a tick saw: ready batches by stop, beats by owner."""

    ready: dict[str, int]
    beats: dict[str, int]


class Standing(Struct, frozen=True, array_like=True):
    """One source's part of a commit; the fields are those of routing/lua/commit.lua."""

    source: str
    positions: list[int]
    packed: list[str]
    replays: list[str]
    voids: list[int]
    stored: list[int]
    kept: list[int]


class Committed(Struct, frozen=True):
    """What a commit moved: how many verdicts were late, and the cells that entered each scope's windows, in order."""

    late: int
    released: dict[str, bytes]


class Snapshot(Struct, frozen=True):
    """Where everything is, for people: counts by name."""

    use: dict[str, int]
    account: dict[str, int]
    tallies: dict[str, dict[str, int]]
    owners: int
