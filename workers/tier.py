"""A tier at work: claim, decode, score, vote, decide, settle. The way of a photo through one level of the cascade."""

import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
from msgspec import Struct
from msgspec.structs import replace

from configs.errors import MessageError, PhotoError
from configs.profile import Profile, Tier
from routing.answers import Claim
from routing.batches import UNREADABLE_MS, again, item_batch, verdict_batch
from routing.decision import decide, settle_held, void, with_votes
from routing.failpoints import Window, failpoint
from routing.messages import Child, Claimed, Item, Verdict, decode_items
from routing.owner import Owner
from routing.refusals import Lost
from workers.batcher import Batcher
from workers.claim_clock import ClaimClock
from workers.engines import EngineAwayError
from workers.fanout import Fanout
from workers.gate import Gate
from workers.overload import Mark
from workers.panel import Panel
from workers.photos import LoadInputs
from workers.progress import Progress
from workers.scorer import EndingError, Left, Outcome, Overdue, Scorer
from workers.stop import Stop

log = structlog.get_logger(__name__)

#: Claims of one batch after which it runs apart, and after as many again is given up: the last fuse.
CLAIMS_FUSE = 20
#: The mark of a batch none of whose items runs.
NOBODY = -1


class _Alone(Struct):
    """What became of a suspect."""

    ended: list[Verdict] = []
    outcomes: list[Outcome | Exception] = []
    device_s: float = 0.0


class TierStop(Stop):
    """One tier in one process. work() runs in several threads at once; the device or the server is the scorer's.

    Args:
        profile: the fleet.
        tier: this tier.
        panel: its models, loaded and warm.
        load_inputs: the panel's input for each item, or why there is none (workers.photos).
        owner: this process's hold on batches.
        progress: what the owner watches.
    """

    def __init__(
        self,
        profile: Profile,
        tier: Tier,
        panel: Panel,
        load_inputs: LoadInputs,
        owner: Owner,
        progress: Progress,
    ) -> None:
        super().__init__(tier.name, tier.max_batch, owner, progress, tier.threads)
        self._profile = profile
        self._tier = tier
        self._panel = panel
        self._nexts = profile.after(tier.name)
        self._marks = [Mark(owner.ledger, one) for one in self._nexts]
        self._load_inputs = load_inputs
        #: Photos are loaded together; a suspect is loaded and scored alone.
        self._gate = Gate(progress)
        bulk_share = profile.delivery.bulk_share
        self.scorer: Scorer = (
            Fanout(panel, tier.server.in_flight, progress, bulk_share)
            if panel.asked
            else Batcher(panel, tier.max_batch, progress, bulk_share)
        )

    def hurry(self) -> None:
        """What would be long in beginning is left to other processes."""
        self.scorer.leave()

    def work(self, claim: Claim) -> None:
        """Takes a claim from pixels to its children in the ledger."""
        since = ClaimClock(claim.now_us // 1000, time.monotonic())
        readable: list[tuple[Claimed, list[Item]]] = []
        for batch in claim.batches:
            try:
                readable.append((batch, decode_items(batch.blob)))
            except MessageError as error:
                log.error("a batch that nobody here can read waits", bid=batch.bid, error=str(error))  # noqa: TRY400
                self._settle(claim, [batch], [again(batch, self.name, since.now_ms() + UNREADABLE_MS)], {})
        alone = [(batch, items) for batch, items in readable if batch.apart or batch.claims > CLAIMS_FUSE]
        for batch, items in alone:
            self._work_apart(claim, batch, items, since)
        together = [pair for pair in readable if pair not in alone] if alone else readable
        if together:
            batches = [batch for batch, _ in together]
            items = [item for _, items in together for item in items]
            self._work_together(claim, batches, items, since)

    def _work_together(self, claim: Claim, batches: list[Claimed], items: list[Item], since: ClaimClock) -> None:
        # A claim is of one lane.
        lane = batches[0].lane
        with self._gate.together():
            ended, sound, inputs = self._load(items, since)
        try:
            outcomes, device_s = self.scorer.score(inputs, lane, since.due_s(sound))
        except EndingError:
            raise
        except Exception:
            # One of them may be the cause: from now on each runs alone.
            log.exception("engine failed", tier=self.name, items=len(sound))
            due_ms = since.now_ms() + self._backoff_ms(0)
            children = self._children(sound, self.name, lane, due_ms, apart=True)
            if ended:
                children.append(verdict_batch(ended, lane))
            self._settle(claim, batches, children, {})
            return
        self._decide(claim, batches, sound, outcomes, ended, device_s, since)

    def _work_apart(self, claim: Claim, batch: Claimed, items: list[Item], since: ClaimClock) -> None:
        """One item at a time, each written down before it runs: if it kills this process, the death is that item's."""
        ended: list[Verdict] = []
        sound: list[Item] = []
        outcomes: list[Outcome] = []
        failed: list[Child] = []
        device_s = 0.0
        for i, known in enumerate(items):
            item = replace(known, faults=known.faults + batch.deaths.get(i, 0))
            if item.faults >= self._profile.delivery.max_faults:
                detail = f"{item.faults} times at {self.name}"
                ended.append(void(item, self.name, since.now_ms(), "killed-its-worker", detail))
                continue
            if batch.claims > 2 * CLAIMS_FUSE:
                detail = f"{batch.claims} times at {self.name}"
                ended.append(void(item, self.name, since.now_ms(), "claimed-too-often", detail))
                continue
            tried = _Alone()
            try:
                self.scorer.alone(partial(self._try, claim, batch, i, item, since, tried), batch.lane)
            except Lost:
                return
            device_s += tried.device_s
            ended += tried.ended
            for outcome in tried.outcomes:
                if isinstance(outcome, Exception) and not isinstance(outcome, EngineAwayError):
                    log.error("engine failed", tier=self.name, item=item.id, exc_info=outcome)
                    failed.append(self._blame(item, batch.lane, since.now_ms(), outcome))
                else:
                    sound.append(item)
                    outcomes.append(outcome)
        self._decide(claim, [batch], sound, outcomes, ended, device_s, since, failed, apart=True)

    def _try(self, claim: Claim, batch: Claimed, index: int, item: Item, since: ClaimClock, tried: _Alone) -> None:
        """One suspect, in the device thread. What dies with it inside the mark is its fault: nothing else runs then."""
        with self._gate.alone():
            self.patiently(partial(self.owner.ledger.mark, claim.owner, batch, index))
            tried.ended, _, inputs = self._load([item], since)
            begun_s = time.monotonic()
            tried.outcomes = [self.scorer.score_now(one) for one in inputs]
            tried.device_s = time.monotonic() - begun_s
            self.patiently(partial(self.owner.ledger.mark, claim.owner, batch, NOBODY))

    def _load(self, items: Sequence[Item], since: ClaimClock) -> tuple[list[Verdict], list[Item], list[Any]]:
        """Verdicts for what cannot be loaded or is overdue; the sound items, and the engine's inputs for them."""
        now_ms = since.now_ms()
        ended: list[Verdict] = [
            settle_held(i, now_ms, "deadline", self.name, self._profile.consensus)
            for i in items
            if 0 < i.deadline_ms <= now_ms
        ]
        if ended:
            items = [i for i in items if not 0 < i.deadline_ms <= now_ms]
        sound: list[Item] = []
        inputs: list[Any] = []
        for item, loaded in zip(items, self.patiently(lambda: self._load_inputs(items)), strict=True):
            if isinstance(loaded, PhotoError):
                ended.append(void(item, self.name, now_ms, loaded.reason, str(loaded)))
            else:
                sound.append(item)
                inputs.append(loaded)
        return ended, sound, inputs

    def _decide(
        self,
        claim: Claim,
        batches: list[Claimed],
        items: Sequence[Item],
        outcomes: Sequence[Outcome],
        ended: list[Verdict],
        device_s: float,
        since: ClaimClock,
        failed: Sequence[Child] = (),
        *,
        apart: bool = False,
    ) -> None:
        latency_ms = round((time.monotonic() - since.begun_s) * 1000, 3)
        now_ms = since.now_ms()
        lane = batches[0].lane
        climbing: dict[str, list[Item]] = {}
        waiting: list[Item] = []
        left: list[Item] = []
        abstained = scored = 0
        tier, nexts, fitted = self._tier, self._nexts, self._profile.consensus
        overloaded = [mark.tier.name for mark in self._marks if self.patiently(mark.over)]
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, EngineAwayError):
                waiting.append(item)
                continue
            if isinstance(outcome, Left):
                left.append(item)
                continue
            if isinstance(outcome, Overdue):
                ended.append(settle_held(item, now_ms, "deadline", self.name, fitted))
                continue
            cast = self._panel.votes(outcome, latency_ms)
            scored += 1
            abstained += not cast
            voted = with_votes(item, cast)
            end = decide(voted, tier, nexts, now_ms, overloaded=overloaded, fitted=fitted)
            if isinstance(end, Verdict):
                ended.append(end)
            else:
                climbing.setdefault(end, []).append(voted)
        children = [*failed, *self._wait(waiting, lane, now_ms, apart=apart), *self._children(left, self.name, lane)]
        if ended:
            children.append(verdict_batch(ended, lane))
        for way, climbers in climbing.items():
            children += self._children(climbers, way, lane)
        counts = {
            "scored": scored,
            "settled": len(ended),
            "escalated": sum(map(len, climbing.values())),
            "abstained": abstained,
            "device_us": round(device_s * 1e6),
            **self._panel.take_counts(),
        }
        self._settle(claim, batches, children, counts)

    def _children(
        self, items: Sequence[Item], tier: str, lane: str, not_before_ms: int = 0, *, apart: bool = False
    ) -> list[Child]:
        """Apart by deadline: a batch is routed when its earliest one comes."""
        parts = [i for i in items if i.deadline_ms], [i for i in items if not i.deadline_ms]
        return [item_batch(part, tier, lane, not_before_ms, apart=apart) for part in parts if part]

    def _wait(self, items: Sequence[Item], lane: str, now_ms: int, *, apart: bool) -> list[Child]:
        """The engine is away: they come again, without end and without a fault, after ever longer back-offs."""
        children: list[Child] = []
        for tries in sorted({item.tries for item in items}):
            again = [replace(item, tries=tries + 1) for item in items if item.tries == tries]
            log.warning("engine is away, items wait", tier=self.name, items=len(again), tries=tries + 1)
            children += self._children(again, self.name, lane, now_ms + self._backoff_ms(tries), apart=apart)
        return children

    def _backoff_ms(self, times: int) -> int:
        """After so many earlier ones; with jitter, so that what failed together does not come back in step."""
        delivery = self._profile.delivery
        longest_s = min(delivery.backoff_max_s, delivery.backoff_s * 2 ** min(times, 30))
        return int(longest_s * random.uniform(0.5, 1) * 1000)  # noqa: S311 - jitter

    def _blame(self, item: Item, lane: str, now_ms: int, error: Exception) -> Child:
        """The engine failed on this item alone: that is its fault; after a back-off it may try again, a few times."""
        faults = item.faults + 1
        item = replace(item, faults=faults)
        if faults >= self._profile.delivery.max_faults:
            detail = f"{type(error).__name__}: {error}"
            return verdict_batch([void(item, self.name, now_ms, "engine-error", detail)], lane)
        return item_batch([item], self.name, lane, now_ms + self._backoff_ms(faults), apart=True)

    def _settle(self, claim: Claim, batches: list[Claimed], children: Sequence[Child], counts: dict[str, int]) -> None:
        failpoint(Window.CLAIM_SETTLE)
        try:
            woken = self.patiently(lambda: self.owner.ledger.settle(claim.owner, batches, children, self.name, counts))
        except Lost as lost:
            # Whoever has them now settles them. What was ours alone is claimed again by the beat's reconciliation.
            log.warning("settle refused", tier=self.name, lost=len(lost.bids), batches=len(batches))
            return
        failpoint(Window.SETTLE_DOORBELL)
        self.owner.doorbells.ring(woken)
