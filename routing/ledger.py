"""The ledger: where every admitted photo is, and the verbs that move it.

Each verb is one Lua script (routing/lua), atomic on the server. Celery only carries doorbells; this is the truth. The
key layout and the three invariants stand at the head of routing/lua/layout.lua.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import redis
from msgspec.structs import replace

from configs.profile import COLLECTOR
from routing.answers import Claim, Committed, Snapshot, Standing, Tick
from routing.messages import Child, Claimed
from routing.refusals import Full, Lost, Misplaced, Missing, OtherProfile, OwnerDead, Zombie

PREFIX = "{nf}:"
LUA = Path(__file__).parent / "lua"
#: Cells of a scope's window.
WINDOW = 1000


def new_id() -> str:
    """128 random bits: a batch, an owner or a token; a pid would repeat in containers."""
    return secrets.token_hex(16)


def _counts(raw: Mapping[bytes, bytes]) -> dict[str, int]:
    return {key.decode(): int(value) for key, value in raw.items()}


class Ledger:
    """The verbs. Safe to share between threads.

    Network errors (redis.RedisError) pass through: every verb may be asked again.
    """

    def __init__(self, server: redis.Redis, clock_us: Callable[[], int] | None = None) -> None:
        self.server = server
        #: Tests pass time in; the fleet uses the server's.
        self._clock_us = clock_us
        layout = (LUA / "layout.lua").read_text()
        self._scripts = {
            path.stem: _script(server, layout, path) for path in LUA.glob("*.lua") if path.stem != "layout"
        }

    def _now(self) -> int:
        return self._clock_us() if self._clock_us else 0

    def _run(self, verb: str, *args: Any) -> tuple[str, list[Any]]:
        reply = self._scripts[verb](args=args)
        answer, rest = reply[0].decode(), reply[1:]
        if answer == "unbalanced":
            # A caller's mistake, not the fleet's state: nothing was written, and asking again cannot help.
            raise ValueError(f"{verb}: the new batches hold {rest[0]} items, in place of {rest[1]}")
        return answer, rest

    def open(self, source: str, lane: str, keep_s: int = 0) -> tuple[int, int]:
        """Opens a source for producing: its new epoch, and the position to go on from.

        Args:
            source: the stream.
            lane: live or bulk.
            keep_s: how long the source is remembered while nothing of it is on its way, as its first open says;
                0: for ever, so that it can be resumed.
        """
        reply = self._scripts["open"](args=(source, lane, keep_s))
        return int(reply[0]), int(reply[1])

    def close(self, source: str, epoch: int, end: int) -> None:
        """Nothing more will come from this source, which ends before position ``end``.

        Raises:
            Zombie, or Misplaced: the server went back in time since the last admit.
        """
        answer, rest = self._run("close", source, epoch, end)
        if answer == "zombie":
            raise Zombie
        if answer == "at":
            raise Misplaced(int(rest[0]))

    def admit(
        self,
        source: str,
        epoch: int,
        start: int,
        end: int,
        lane: str,
        children: Sequence[Child],
        *,
        stored: Sequence[int],
        max_items: int,
        max_bytes: int,
    ) -> list[str]:
        """Takes positions [start, end) into the fleet and moves the source's offset, or nothing.

        Args:
            source: the stream.
            epoch: as open() gave it.
            start: the first position, which must be the source's offset.
            end: one past the last.
            lane: live or bulk.
            children: the batches; together they hold end - start items (what is bad at intake goes to the collector
                as voids).
            stored: positions whose bytes must be in the server's photo store.
            max_items: bound of items in the fleet.
            max_bytes: bound of stored bytes in the fleet.

        Returns:
            Stops whose ready list was empty: ring them. Also when it was done already (an answer that was lost).

        Raises:
            Zombie, Misplaced, Full, Missing.
            ValueError: the batches do not hold end - start items.
        """
        flat: list[Any] = []
        for child in children:
            flat += (child.bid, child.tier, child.n, child.stored_bytes, child.deadline_ms, child.blob)
        positions = msgspec.msgpack.encode(list(stored))
        answer, rest = self._run(
            "admit", self._now(), source, epoch, start, end, max_items, max_bytes, lane, positions, len(children), *flat
        )
        if answer == "at" and int(rest[0]) == end:
            return [child.tier for child in children]
        if answer == "at":
            raise Misplaced(int(rest[0]))
        if answer == "zombie":
            raise Zombie
        if answer == "full":
            raise Full(int(rest[0]), int(rest[1]))
        if answer == "missing":
            raise Missing(int(rest[0]))
        return [tier.decode() for tier in rest]

    def enlist(self, owner: str, digest: str) -> None:
        """A process joins the fleet. Raises OtherProfile when those who live run another one."""
        answer, rest = self._run("enlist", owner, digest)
        if answer == "other":
            raise OtherProfile(rest[0].decode())

    def leave(self, owner: str) -> None:
        """An owner ends in order: what it holds goes back without a fault."""
        self._run("leave", owner)

    def claim(
        self,
        stop: str,
        owner: str,
        token: str,
        max_items: int,
        bulk_share: float = 0.2,
        attend_ms: int = -1,
        busy_ms: int = -1,
    ) -> Claim:
        """Takes the oldest ready batches of one lane of a stop, up to ``max_items`` (at least one batch).

        Asked again under its token it returns the same batches.

        Args:
            stop: a tier, the collector or the route stop.
            owner: who claims.
            token: new for each claim.
            max_items: items at most.
            bulk_share: share of claims, while both lanes wait, that serve bulk first; negative: live work only.
            attend_ms: when the stop is dry the caller looks again within so long, and need not be rung until then;
                0: it does not say; negative: leaves that as it is.
            busy_ms: the same, when it gets something to work on first.

        Raises:
            OwnerDead.
        """
        bulk_percent = round(bulk_share * 100)
        answer, rest = self._run("claim", self._now(), stop, owner, token, max_items, bulk_percent, attend_ms, busy_ms)
        if answer == "dead":
            raise OwnerDead
        batches = [
            Claimed(
                bid=bid.decode(),
                token=token,
                lane=lane.decode(),
                order=int(order),
                gen=int(gen),
                claims=int(claims),
                apart=apart == b"1",
                deaths=dict(zip(map(int, deaths[::2]), map(int, deaths[1::2]), strict=True)),
                blob=blob,
                n=int(n),
                stored_bytes=int(stored_bytes),
                came_from=came_from.decode(),
            )
            for bid, lane, order, gen, claims, apart, deaths, blob, n, stored_bytes, came_from in rest[2:]
        ]
        return Claim(owner=owner, token=token, now_us=int(rest[0]), left=int(rest[1]), batches=batches)

    def mark(self, owner: str, batch: Claimed, index: int) -> None:
        """Writes that this owner is about to run item ``index`` of a batch that runs apart. Raises Lost."""
        answer, rest = self._run("mark", owner, batch.bid, batch.token, index)
        if answer != "ok":
            raise Lost((bid.decode() for bid in rest[0]), fenced=answer == "fenced")

    def settle(
        self,
        owner: str,
        parents: Sequence[Claimed],
        children: Sequence[Child],
        tier: str = "",
        counts: Mapping[str, int] | None = None,
    ) -> list[str]:
        """Removes the parents and writes their children in one step, or nothing.

        Args:
            owner: who claimed the parents.
            parents: all of them this owner's.
            children: batches in their place; together they hold the parents' items.
            tier: whose tally ``counts`` is added to.
            counts: scored, settled, escalated, abstained, device_us.

        Returns:
            Stops whose ready list was empty: ring them.

        Raises:
            Lost: some parents are not this owner's any more.
            ValueError: the children do not hold the parents' items.
        """
        flat: list[Any] = [len(parents)]
        for parent in parents:
            flat += (parent.bid, parent.token)
        flat.append(len(children))
        for c in children:
            flat += (c.bid, c.tier, c.lane, c.n, c.stored_bytes, c.deadline_ms, c.not_before_ms, int(c.apart), c.blob)
        flat += (tier, len(counts or {}))
        for name, by in (counts or {}).items():
            flat += (name, by)
        answer, rest = self._run("settle", self._now(), owner, *flat)
        if answer != "ok":
            raise Lost((bid.decode() for bid in rest[0]), fenced=answer == "fenced")
        return [stop.decode() for stop in rest]

    def commit(
        self,
        owner: str,
        parents: Sequence[Claimed],
        standings: Sequence[Standing],
        *,
        verdicts: int,
        quarantined: int,
        late_after_ms: int,
        keep_s: int,
    ) -> Committed:
        """The collector's settle, after the rows are in the database: windows and counts move, bytes go.

        Quarantine, and the bytes of who is in it, end after ``keep_s``.

        Raises:
            Lost: some parents are not this owner's any more.
            ValueError: the standings do not hold the parents' verdicts.
        """
        flat: list[Any] = [len(parents)]
        for parent in parents:
            flat += (parent.bid, parent.token)
        flat += (
            late_after_ms,
            keep_s,
            verdicts,
            quarantined,
            msgspec.msgpack.encode([_in_order(s) for s in standings]),
        )
        answer, rest = self._run("commit", self._now(), owner, *flat)
        if answer != "ok":
            raise Lost((bid.decode() for bid in rest[0]), fenced=answer == "fenced")
        return Committed(
            late=int(rest[0]), released={s.decode(): c for s, c in zip(rest[1::2], rest[2::2], strict=True)}
        )

    def heartbeat(self, owner: str, tokens: Iterable[str]) -> None:
        """Says that the owner lives and what it holds. Raises OwnerDead."""
        answer, _ = self._run("heartbeat", owner, *tokens)
        if answer == "dead":
            raise OwnerDead

    def reap(self, owner: str, beat_seen: int) -> int | None:
        """Gives a silent owner's batches back: how many, or None because it lives after all."""
        answer, rest = self._run("reap", owner, beat_seen)
        return int(rest[0]) if answer == "ok" else None

    def tick(self, stops: Sequence[str]) -> Tick:
        """Ends back-offs, sends overdue batches to the route stop; what is ready at each stop, and all beats."""
        reply = self._scripts["tick"](args=(self._now(), *stops))
        cut = reply.index(b"owners", 2 * len(stops))
        ready = {stop.decode(): int(n) for stop, n in zip(reply[0:cut:2], reply[1:cut:2], strict=True)}
        beats = {
            owner.decode(): int(beat) for owner, beat in zip(reply[cut + 1 :: 2], reply[cut + 2 :: 2], strict=True)
        }
        return Tick(ready=ready, beats=beats)

    def beats(self) -> dict[str, int]:
        """Every listed owner's beat; one that moves is a process that lives."""
        beats: Any = self.server.hgetall(PREFIX + "owners")
        return _counts(beats)

    def replay(
        self, source: str, position: int, tier: str, blob: bytes, stored_bytes: int, *, in_server: bool, row_gen: int
    ) -> str:
        """Sends a quarantined photo on its way once more.

        Args:
            source: the stream that it is of.
            position: its place there.
            tier: where it begins.
            blob: the item, encoded.
            stored_bytes: of its photo.
            in_server: whether the photo is in the server's store.
            row_gen: generation of the row that its verdict is to replace.

        Returns:
            "ok", "gone" (it is not in quarantine) or "missing" (its bytes went).
        """
        photo = (source, position, int(in_server), new_id(), tier, stored_bytes, blob, row_gen)
        return self._run("replay", self._now(), *photo)[0]

    def drop(self, ids: Sequence[str]) -> int:
        """Takes voids out of quarantine for good, bytes and all; how many were there."""
        return int(self._run("drop", *ids)[1][0])

    def maxmemory_bytes(self) -> int:
        """The server's memory bound; 0: it has none, or does not tell."""
        try:
            memory: Any = self.server.info("memory")
        except redis.exceptions.NoPermissionError:
            return 0
        return int(memory.get("maxmemory", 0))

    def snapshot(self, tiers: Sequence[str]) -> Snapshot:
        """Counts for people; not atomic over its parts."""
        pipe = self.server.pipeline(transaction=False)
        for key in ("use", "acct", *(f"tally:{tier}" for tier in (*tiers, COLLECTOR))):
            pipe.hgetall(PREFIX + key)
        pipe.hlen(PREFIX + "owners")
        use, account, *tallies, owners = pipe.execute()
        named = {name: _counts(tally) for name, tally in zip((*tiers, COLLECTOR), tallies, strict=True)}
        return Snapshot(use=_counts(use), account=_counts(account), tallies=named, owners=owners)

    def window(self, scope: str, sources: Sequence[str] = ()) -> bytes:
        """The last 1,000 cells of a scope, oldest first: b"0" tn, b"1" fp, b"2" fn, b"3" tp, b"-" a void.

        With ``sources`` only the cells of these among them.
        """
        entries: Any = self.server.lrange(PREFIX + "win:" + scope, 0, -1)
        cells = b"".join([entry.partition(b"|")[0] for entry in entries])[-WINDOW:]
        if not sources:
            return cells
        ids = _ids(entries)
        return bytes([cell for cell, id_ in zip(cells, ids, strict=True) if id_.rpartition(":")[0] in sources])

    def ring(self, scope: str) -> list[str]:
        """The ids (source:position) behind the cells of window()."""
        entries: Any = self.server.lrange(PREFIX + "win:" + scope, 0, -1)
        return _ids(entries)

    def scopes(self) -> list[str]:
        """Every scope that a verdict counted in."""
        scopes: Any = self.server.hkeys(PREFIX + "rings")
        return sorted(scope.decode() for scope in scopes)

    def totals(self, scope: str) -> dict[str, int]:
        """All-time counts of a scope by cell."""
        counts: Any = self.server.hgetall(PREFIX + "cnt:" + scope)
        return _counts(counts)


def _in_order(standing: Standing) -> Standing:
    """By position: sorting here leaves the server's one core alone."""
    positions = standing.positions
    order = sorted(range(len(positions)), key=positions.__getitem__)
    return replace(standing, positions=[positions[i] for i in order], packed=[standing.packed[i] for i in order])


def _ids(entries: Sequence[bytes]) -> list[str]:
    """The ids behind a window's entries, which are `cells|S:first+count...`."""
    ids: list[str] = []
    for entry in entries:
        for run in entry.partition(b"|")[2].decode().split("\n"):
            source, _, span = run.rpartition(":")
            first, _, count = span.partition("+")
            ids += [f"{source}:{position}" for position in range(int(first), int(first) + int(count))]
    return ids[-WINDOW:]


def _script(server: redis.Redis, layout: str, path: Path) -> Any:
    """A registered script: its shebang line first, as the server demands, then the layout and its own lines."""
    shebang, body = path.read_text().split("\n", 1)
    return server.register_script(f"{shebang}\n{layout}\n{body}")
