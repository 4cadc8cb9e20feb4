"""An owner: one process's hold on batches. Its thread beats, and does the once-a-second work that every process shares.

That work (reaping the silent, ending back-offs, serving the route stop, ringing where work is ready and no doorbell
waits) needs no leader:
each part is atomic in the ledger, and doing it twice does nothing.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import redis
import structlog
from msgspec.structs import replace

from configs.errors import ConfigError, MessageError
from configs.profile import ROUTE, Profile
from routing.answers import Claim, Tick
from routing.batches import UNREADABLE_MS, again, item_batch, verdict_batch
from routing.broker import Doorbells
from routing.decision import settle_held
from routing.ledger import Ledger, new_id
from routing.messages import Child, decode_items
from routing.patience import passing
from routing.refusals import Lost, OtherProfile, OwnerDead

if TYPE_CHECKING:
    from routing.standby import Standby

log = structlog.get_logger(__name__)

#: Doorbells that wait at a stop at most: enough to wake every thread of a fleet, however deep its ready list.
MAX_DOORBELLS = 16
#: How a process ends that makes no progress: sysexits' EX_SOFTWARE.
STALLED = 70


class Watch:
    """Who is silent: reaping by observation, on this process's own monotonic clock.

    A beat must be seen to stand still for a whole lease in samples without a gap; a watcher that was itself paused
    starts over.
    So neither a server that stopped nor a clock that jumped makes anybody look dead.
    """

    def __init__(self, lease_s: float, gap_s: float) -> None:
        self._lease_s = lease_s
        self._gap_s = gap_s
        self._last = -float("inf")
        self._seen: dict[str, tuple[int, float]] = {}

    def sample(self, beats: dict[str, int], now_s: float) -> list[tuple[str, int]]:
        """Owners (with the beat seen) whose beat stood still for a lease, by this sample."""
        if now_s - self._last > self._gap_s:
            self._seen = {}
        self._last = now_s
        self._seen = {
            owner: seen if (seen := self._seen.get(owner)) and seen[0] == beat else (beat, now_s)
            for owner, beat in beats.items()
        }
        return [(owner, beat) for owner, (beat, since) in self._seen.items() if now_s - since >= self._lease_s]


class Owner:
    """A process's identity in the ledger. Thread-safe.

    Args:
        ledger: where it lives.
        profile: what its fleet runs.
        doorbells: how it wakes others.
        stops: the stops whose ready lists it rings.
        stalled_s: seconds since the work moved that stands still the longest, 0 without any; past ``stall_s`` the
            process ends itself, and the supervisor restarts it.
        stall_s: see there. While the server is away nothing can move: it counts from the end of an outage on.
    """

    def __init__(
        self,
        ledger: Ledger,
        profile: Profile,
        doorbells: Doorbells,
        stops: Sequence[str],
        *,
        stalled_s: Callable[[], float] = lambda: 0.0,
        stall_s: float = 30.0,
    ) -> None:
        self.id = new_id()
        self.ledger = ledger
        self.profile = profile
        self.doorbells = doorbells
        self._stops = list(stops)
        self._stalled_s = stalled_s
        self._stall_s = stall_s
        self._tokens: set[str] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        beat_s = profile.delivery.beat_s
        self._gap_s = 2.5 * beat_s
        self._watch = Watch(profile.delivery.lease_s, self._gap_s)
        #: Its own stop's, if it has one: set it before start().
        self.standby: Standby | None = None
        #: When the last beat began, and since when they follow each other without a gap, by the monotonic clock.
        self._begun_s = self._steady_s = time.monotonic()
        self._thread = threading.Thread(target=self._live, name="owner", daemon=True)

    def start(self) -> None:
        """Joins the fleet and starts to beat.

        Raises:
            ConfigError: the fleet runs another profile.
        """
        digest = self.profile.digest()
        # Those who crashed all at once under another profile are still listed: they are dead when a lease has passed.
        give_up_s = time.monotonic() + self.profile.delivery.lease_s + 3 * self.profile.delivery.beat_s
        while True:
            try:
                self.ledger.enlist(self.id, digest)
                break
            except OtherProfile as other:
                if time.monotonic() > give_up_s:
                    raise ConfigError(
                        f"the fleet on this server runs another profile ({other.digest}; {self.profile.name!r} is "
                        f"{digest}): stop its processes first, or start this one with their profile"
                    ) from None
            self._reap(self.ledger.tick(self._stops))
            time.sleep(self.profile.delivery.beat_s)
        self._thread.start()

    def stop(self) -> None:
        """Leaves in order: what is still held goes back without a fault."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        try:
            self.ledger.leave(self.id)
        except redis.RedisError as error:
            log.warning("left without a word, will be reaped", error=str(error))

    @property
    def ending(self) -> bool:
        """stop() was called."""
        return self._ending.is_set()

    def claim(
        self, stop: str, max_items: int, attend_ms: int = -1, busy_ms: int = -1, bulk_share: float | None = None
    ) -> Claim:
        """Claims ready batches; release() the claim when they are settled. An empty claim needs no release."""
        token = new_id()
        if self.standby and stop == self.standby.stop:
            self.standby.looked()
        with self._lock:
            # Before the call: a beat in between must not take the batches for a lost reply.
            self._tokens.add(token)
            owner = self.id
        try:
            share = self.profile.delivery.bulk_share if bulk_share is None else bulk_share
            claim = self.ledger.claim(stop, owner, token, max_items, share, attend_ms, busy_ms)
        except BaseException:
            self._forget(token)
            raise
        if not claim.batches:
            self._forget(token)
        return claim

    def release(self, claim: Claim) -> None:
        """The claim's batches are settled, or given up."""
        self._forget(claim.token)

    def _forget(self, token: str) -> None:
        with self._lock:
            self._tokens.discard(token)

    def _live(self) -> None:
        beat_s = self.profile.delivery.beat_s
        # Spread over the second: processes started together would all ring the same stop.
        self._ending.wait(random.random() * beat_s)  # noqa: S311 - no cryptography
        while not self._ending.is_set():
            begun = time.monotonic()
            try:
                self._beat()
            except redis.RedisError as error:
                self._steady_s = time.monotonic()
                if passing(error):
                    log.warning("server does not answer", error=str(error))
                else:
                    log.error("the ledger fails", error=str(error))  # noqa: TRY400 - its text says it all
            except OwnerDead:
                # Reaped between this beat and its work: the next beat takes a new id.
                continue
            except Exception:
                # Without a beat this process would be reaped, and its threads would wait for a new id for ever.
                log.critical("the beat failed, ending this process", exc_info=True)
                os._exit(STALLED)
            self._ending.wait(max(0.05, beat_s - (time.monotonic() - begun)))

    def _beat(self) -> None:
        now_s = time.monotonic()
        if now_s - self._begun_s > self._gap_s:
            self._steady_s = now_s
        self._begun_s = now_s
        stalled_s = min(self._stalled_s(), now_s - self._steady_s)
        if stalled_s > self._stall_s:
            log.critical("no progress, ending this process", stalled_s=round(stalled_s, 1), stall_s=self._stall_s)
            os._exit(STALLED)
        with self._lock:
            tokens = list(self._tokens)
        try:
            self.ledger.heartbeat(self.id, tokens)
        except OwnerDead:
            self._revive()
        tick = self.ledger.tick(self._stops)
        self._reap(tick)
        self._route()
        if self.standby:
            self.standby.tick(tick.ready[self.standby.stop], busy=bool(tokens))
        self._ring(tick)

    def _reap(self, tick: Tick) -> None:
        for owner, beat in self._watch.sample(tick.beats, time.monotonic()):
            given_back = self.ledger.reap(owner, beat)
            if given_back is not None:
                log.warning("reaped a silent owner", owner=owner, batches=given_back)

    def _revive(self) -> None:
        """Somebody reaped this owner, or the server went back in time: what it held is lost to it; it starts anew."""
        with self._lock:
            self.id = new_id()
            self._tokens.clear()
        log.warning("this owner was reaped, goes on under a new id", owner=self.id)
        self.ledger.enlist(self.id, self.profile.digest())

    def _ring(self, tick: Tick) -> None:
        busy = {stop: ready for stop, ready in tick.ready.items() if ready}
        if not busy:
            return
        waiting = self.doorbells.waiting(busy)
        if waiting is None:
            return
        # A part each, because others may be about to ring for the same want; and half of the room, because whoever
        # writes to an empty list, or finds more than it took, rings without counting.
        room = MAX_DOORBELLS // 2
        share = max(1, room // max(1, len(tick.beats)))
        wanted = {stop: min(share, min(ready, room) - waiting[stop]) for stop, ready in busy.items()}
        self.doorbells.ring(stop for stop, n in wanted.items() for _ in range(n))

    def _route(self) -> None:
        """Settles by the votes held what no tier may have any more: overdue batches, those of a tier that is gone."""
        while (claim := self.claim(ROUTE, 4096)).batches:
            try:
                self.doorbells.ring(self.ledger.settle(claim.owner, claim.batches, self._routed(claim)))
            except Lost as lost:
                log.warning("route settle refused", lost=len(lost.bids))
            finally:
                self.release(claim)

    def _routed(self, claim: Claim) -> list[Child]:
        """Overdue items settle by the votes they have; others go back to their tier, if the profile still has it."""
        now_ms = claim.now_us // 1000
        children: list[Child] = []
        for batch in claim.batches:
            try:
                items = decode_items(batch.blob)
            except MessageError as error:
                log.error("a batch that nobody here can read waits", bid=batch.bid, error=str(error))  # noqa: TRY400
                children.append(again(batch, ROUTE, now_ms + UNREADABLE_MS))
                continue
            known = any(tier.name == batch.came_from for tier in self.profile.tiers)
            # A suspect stays one, with the deaths that it caused: among others it would make suspects of them.
            items = [replace(x, faults=x.faults + batch.deaths.get(i, 0)) for i, x in enumerate(items)]
            back = [item for item in items if known and not 0 < item.deadline_ms <= now_ms]
            ended = [
                settle_held(
                    i, now_ms, "deadline" if 0 < i.deadline_ms <= now_ms else "no-tier", fitted=self.profile.consensus
                )
                for i in items
                if not known or 0 < i.deadline_ms <= now_ms
            ]
            if back:
                children.append(item_batch(back, batch.came_from, batch.lane, apart=batch.apart))
            if ended:
                children.append(verdict_batch(ended, batch.lane))
        return children
