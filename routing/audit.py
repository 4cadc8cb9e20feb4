"""The audit: the whole ledger read at one moment and held against its invariants. For tests and runs under faults."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import redis
from msgspec import Struct

from configs.errors import MessageError
from configs.profile import COLLECTOR
from routing.ledger import WINDOW, Ledger
from routing.messages import Item, decode_items, decode_verdicts


class Audit(Struct, frozen=True):
    """What an audit found; no problems: every admitted photo is in exactly one place."""

    problems: list[str]
    #: Items in batches, admitted positions, and those that ended, for whoever prints them.
    items: int
    admitted: int
    ended: int

    def raise_for_problems(self) -> None:
        """Raises AssertionError with every problem, one a line."""
        if self.problems:
            raise AssertionError("\n".join(self.problems))


def audit(server: redis.Redis) -> Audit:
    """Reads everything in one script and checks it. It walks all keys and decodes all batches: not for a busy fleet."""
    return read_book(server).audit()


def _pairs(flat: list[bytes]) -> Iterator[tuple[str, bytes]]:
    return ((name.decode(), value) for name, value in zip(flat[::2], flat[1::2], strict=True))


class Book:
    """The ledger's keys, sorted by what they are; as the server has them, but for the names."""

    def __init__(self, rows: list[list[Any]]) -> None:
        self.b: dict[str, dict[str, bytes]] = {}
        self.src: dict[str, dict[str, bytes]] = {}
        self.ready: dict[tuple[str, str], dict[str, bytes]] = {}
        self.own: dict[str, dict[str, bytes]] = {}
        self.ro: dict[str, dict[str, bytes]] = {}
        self.win: dict[str, list[bytes]] = {}
        self.img: dict[str, int] = {}
        single: dict[str, dict[str, bytes]] = {}
        for raw_key, kind, content in rows:
            key = raw_key.decode()
            head, _, rest = key.partition(":")
            if kind == b"photo":
                self.img[rest] = content
            elif head in {"b", "src", "own", "ro"}:
                getattr(self, head)[rest] = dict(_pairs(content))
            elif head == "ready":
                tier, _, lane = rest.rpartition(":")
                self.ready[tier, lane] = dict(_pairs(content))
            elif head == "win":
                self.win[rest] = content
            elif kind in {b"hash", b"zset"}:
                single[key] = dict(_pairs(content))
        self.later = single.get("later", {})
        self.due = single.get("due", {})
        self.quarantine = single.get("voids", {})
        self.owners = single.get("owners", {})
        self.acct = Counter({name: int(n) for name, n in single.get("acct", {}).items()})
        self.rings = Counter({scope: int(n) for scope, n in single.get("rings", {}).items()})
        self.used = Counter({name: int(n) for name, n in single.get("use", {}).items()})
        self.items: dict[str, list[Item]] = {}
        self.unreadable: list[str] = []
        for bid, batch in self.b.items():
            try:
                self.items[bid] = self._decode(batch)
            except MessageError as error:
                self.unreadable.append(f"batch {bid} cannot be read: {error}")

    def audit(self) -> Audit:
        """Holds it against the invariants."""
        checks = (
            self.places(),
            self.batches(),
            self.positions(),
            self.account(),
            self.use(),
            self.windows(),
            self.photos(),
        )
        return Audit(
            problems=[problem for check in checks for problem in check],
            items=sum(map(len, self.items.values())),
            admitted=self.acct["admitted"],
            ended=self.acct["verdicts"] + self.acct["quarantined"],
        )

    @staticmethod
    def _decode(batch: dict[str, bytes]) -> list[Item]:
        if batch.get("tier") == COLLECTOR.encode():
            return [verdict.item for verdict in decode_verdicts(batch["items"])]
        return decode_items(batch.get("items", b""))

    def places(self) -> Iterator[str]:
        """Invariant A: every batch is in exactly one of ready, later, own."""
        places: dict[str, list[str]] = {bid: [] for bid in self.b}
        for (tier, lane), bids in self.ready.items():
            for bid, order in bids.items():
                places.setdefault(bid, []).append(f"ready:{tier}:{lane}")
                if bid in self.b and int(order) != (own := int(self.b[bid]["order"])):
                    yield f"batch {bid} of order {own} waits in ready:{tier}:{lane} at {int(order)}"
        for bid in self.later:
            places.setdefault(bid, []).append("later")
        for owner, bids in self.own.items():
            if owner not in self.owners:
                yield f"owner {owner} holds {len(bids)} batches and is not among the owners"
            for bid in bids:
                places.setdefault(bid, []).append(f"own:{owner}")
        for bid, found in places.items():
            yield from self._place(bid, found)

    def _place(self, bid: str, found: list[str]) -> Iterator[str]:
        batch = self.b.get(bid)
        if batch is None:
            yield f"{', '.join(found)} names batch {bid}, which does not exist"
            return
        if len(found) != 1:
            yield f"batch {bid} is in {len(found)} places: {', '.join(found) or 'none'}"
        stop = f"{batch['tier'].decode()}:{batch['lane'].decode()}"
        if wrong := [place for place in found if place.startswith("ready:") and place != f"ready:{stop}"]:
            yield f"batch {bid} of {stop} waits in {wrong[0]}"

    def batches(self) -> Iterator[str]:
        """What a batch says of itself is what is in it; who is due exists."""
        yield from self.unreadable
        for bid, items in self.items.items():
            batch = self.b[bid]
            if int(batch["n"]) != len(items):
                yield f"batch {bid} says n = {int(batch['n'])} and holds {len(items)} items"
            if int(batch["bytes"]) != (held := sum(item.stored_bytes for item in items)):
                yield f"batch {bid} says bytes = {int(batch['bytes'])} and its items have {held}"
            if int(batch["deadline"]) and bid not in self.due and batch["tier"] != b"route":
                yield f"batch {bid} has a deadline and is not in due"
        for bid in self.due.keys() - self.b.keys():
            yield f"due names batch {bid}, which does not exist"

    def positions(self) -> Iterator[str]:
        """Invariant B: each admitted position is in exactly one of a batch, ro, released or late."""
        found: dict[str, Counter[int]] = {source: Counter() for source in self.src}
        for bid, items in self.items.items():
            for item in items:
                # The source of a replay may be forgotten.
                if item.source not in found and not item.replay:
                    yield f"batch {bid} holds {item.id} of a source that was never opened"
                elif not item.replay:
                    found[item.source][item.position] += 1
        for source, counts in found.items():
            yield from self._source(source, counts)
        for source in self.ro.keys() - self.src.keys():
            yield f"ro:{source} has no source"

    def _source(self, source: str, counts: Counter[int]) -> Iterator[str]:
        """One source, with the positions of it that are in batches."""
        row = self.src[source]
        offset, cursor, skipped = (int(row.get(name, 0)) for name in ("offset", "next", "skipped"))
        passed = sum(n for position, n in counts.items() if position < cursor)
        if passed != skipped:
            yield f"source {source}: {passed} positions before its cursor {cursor} are in batches, not {skipped}"
        for entry, score in self.ro.get(source, {}).items():
            first = int(entry.partition("@")[0])
            counts.update(range(first, first + entry.count("\n") + 1))
            if first != int(score) or first < cursor:
                yield f"source {source}: {entry!r} waits in ro at {int(score)}, the cursor is at {cursor}"
        if cursor > offset:
            yield f"source {source}: its cursor {cursor} is beyond its offset {offset}"
        if beyond := [position for position in counts if not 0 <= position < offset]:
            yield f"source {source}: positions {sorted(beyond)[:5]} are not within its offset {offset}"
        if doubled := [position for position, n in counts.items() if n > 1]:
            yield f"source {source}: positions {sorted(doubled)[:5]} are in more than one place"
        if missing := [position for position in range(cursor, offset) if not counts[position]]:
            yield f"source {source}: {len(missing)} positions are nowhere, such as {missing[:5]}"

    def account(self) -> Iterator[str]:
        """Invariant C: admitted = verdicts + quarantined + items in batches."""
        acct = self.acct
        inside = sum(map(len, self.items.values()))
        if acct["admitted"] != acct["verdicts"] + acct["quarantined"] + inside:
            yield (
                f"admitted {acct['admitted']} is not verdicts {acct['verdicts']} + quarantined {acct['quarantined']}"
                f" + {inside} items in batches"
            )
        offsets = sum(int(row.get("offset", 0)) for row in self.src.values() if "keep_s" not in row)
        if acct["admitted"] != offsets + acct["brief"]:
            yield (
                f"admitted {acct['admitted']} is not the sum of the sources' offsets, {offsets}, and of {acct['brief']}"
                " from sources that are not kept"
            )
        if len(self.quarantine) > acct["quarantined"]:
            yield f"{len(self.quarantine)} photos are in quarantine, {acct['quarantined']} were counted"

    def use(self) -> Iterator[str]:
        """The counts of use are those of a recount."""
        counted: Counter[str] = Counter()
        for bid, batch in self.b.items():
            counted["items"] += int(batch["n"])
            counted["bytes"] += int(batch["bytes"])
            held = any(bid in bids for bids in self.own.values())
            place = "later" if bid in self.later else "held" if held else "ready"
            counted[f"{place}:{batch['tier'].decode()}"] += int(batch["n"])
        for name in sorted(counted.keys() | self.used.keys()):
            if counted[name] != self.used[name]:
                yield f"use says {name} = {self.used[name]}, a recount {counted[name]}"

    def windows(self) -> Iterator[str]:
        """A window is cut, no position is twice in it, and each source's stand in order."""
        for scope in self.win.keys() | self.rings.keys():
            sizes: list[int] = []
            by_source: dict[str, list[int]] = {}
            for entry in self.win.get(scope, []):
                cells, _, runs = entry.decode().partition("|")
                sizes.append(len(cells))
                for run in runs.split("\n"):
                    source, _, span = run.rpartition(":")
                    first, count = map(int, span.split("+"))
                    by_source.setdefault(source, []).extend(range(first, first + count))
            cells_in, positions_in = sum(sizes), sum(map(len, by_source.values()))
            if not cells_in == positions_in == self.rings[scope]:
                yield f"window {scope} holds {cells_in} cells, of {positions_in} positions, not {self.rings[scope]}"
            if sum(sizes[1:]) >= WINDOW:
                yield f"window {scope} holds {cells_in} cells, more than it needs"
            for source, positions in by_source.items():
                if wrong := next(((a, b) for a, b in pairwise(positions) if a >= b), None):
                    yield f"window {scope}: {source} has position {wrong[0]} before {wrong[1]}"

    def photos(self) -> Iterator[str]:
        """Bytes stay while their photo is on its way, and no longer."""
        inside = {item.id for items in self.items.values() for item in items}
        for photo, ttl_ms in self.img.items():
            if photo in inside and ttl_ms >= 0:
                yield f"the bytes of {photo} will go in {ttl_ms} ms, while it is on its way"
            if photo not in inside and ttl_ms < 0:
                yield f"the bytes of {photo} stay for ever, and it is not on its way"


def read_book(server: redis.Redis) -> Book:
    """Everything at one moment."""
    _, rows = Ledger(server)._run("audit")  # noqa: SLF001 - one more script of the same ledger, kept out of its verbs
    return Book(rows[0])
