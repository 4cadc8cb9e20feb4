"""A tier at work: claim, decode, score, vote, decide, settle. The way of a photo through one level of the cascade."""

import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
from msgspec.structs import replace

from configs.errors import MessageError, PhotoError
from configs.model import ModelSpec
from configs.profile import Profile, Tier
from routing.answers import Claim
from routing.batches import UNREADABLE_MS, again, item_batch, verdict_batch
from routing.decision import decide, settle_held, void, vote, with_vote
from routing.failpoints import Window, failpoint
from routing.messages import Child, Claimed, Item, Verdict, decode_items
from routing.owner import Owner
from routing.refusals import Lost
from workers.batcher import Batcher
from workers.engines import Engine
from workers.photos import LoadInputs
from workers.stop import Progress, Stop

log = structlog.get_logger(__name__)

#: Claims of one batch after which it runs apart, and after as many again is given up: the last fuse.
CLAIMS_FUSE = 20


class TierStop(Stop):
    """One tier in one process. work() runs in several threads at once; the device is the batcher's.

    Args:
        profile: the fleet.
        tier: this tier.
        spec: its model.
        engine: loaded and warm.
        load_inputs: the engine's input for each item, or why there is none (workers.photos).
        owner: this process's hold on batches.
        progress: what the owner watches.
    """

    def __init__(
        self,
        profile: Profile,
        tier: Tier,
        spec: ModelSpec,
        engine: Engine,
        load_inputs: LoadInputs,
        owner: Owner,
        progress: Progress,
    ) -> None:
        super().__init__(tier.name, tier.max_batch, owner, progress)
        self._profile = profile
        self._tier = tier
        self._spec = spec
        self._model = f"{spec.key}@{spec.version}"
        self._next = profile.after(tier.name)
        self._load_inputs = load_inputs
        self.batcher = Batcher(engine, tier.max_batch, progress.moved)

    def work(self, claim: Claim) -> None:
        """Takes a claim from pixels to its children in the ledger."""
        begun_s = time.monotonic()
        readable: list[tuple[Claimed, list[Item]]] = []
        for batch in claim.batches:
            try:
                readable.append((batch, decode_items(batch.blob)))
            except MessageError as error:
                log.error("a batch that nobody here can read waits", bid=batch.bid, error=str(error))  # noqa: TRY400
                self._settle(claim, [batch], [again(batch, self.name, claim.now_us // 1000 + UNREADABLE_MS)], {})
        alone = [(batch, items) for batch, items in readable if batch.apart or batch.claims > CLAIMS_FUSE]
        for batch, items in alone:
            self._work_apart(claim, batch, items, begun_s)
        together = [pair for pair in readable if pair not in alone] if alone else readable
        if together:
            batches = [batch for batch, _ in together]
            items = [item for _, items in together for item in items]
            self._work_together(claim, batches, items, begun_s)

    def _work_together(self, claim: Claim, batches: list[Claimed], items: list[Item], begun_s: float) -> None:
        # A claim is of one lane.
        lane = batches[0].lane
        voids, sound, inputs = self._load(items, claim.now_us // 1000)
        try:
            scores, device_s = self.batcher.score(inputs, lane)
        except Exception:
            # One of them may be the cause: from now on each runs alone.
            log.exception("engine failed", tier=self.name, items=len(sound))
            backoff_s = self._profile.delivery.backoff_s * random.uniform(0.5, 1)  # noqa: S311 - jitter
            due_ms = claim.now_us // 1000 + int(backoff_s * 1000)
            children = [item_batch(sound, self.name, lane, due_ms, apart=True)]
            if voids:
                children.append(verdict_batch(voids, lane))
            self._settle(claim, batches, children, {})
            return
        self._decide(claim, batches, lane, sound, scores, voids, device_s, begun_s)

    def _work_apart(self, claim: Claim, batch: Claimed, items: list[Item], begun_s: float) -> None:
        """One item at a time, each written down before it runs: if it kills this process, the death is that item's."""
        now_ms = claim.now_us // 1000
        voids: list[Verdict] = []
        sound: list[Item] = []
        scores: list[float | None] = []
        failed: list[Child] = []
        device_s = 0.0
        for i, item in enumerate(items):
            faults = item.faults + batch.deaths.get(i, 0)
            if faults >= self._profile.delivery.max_faults:
                voids.append(void(item, self.name, now_ms, "killed-its-worker", f"{faults} times at {self.name}"))
                continue
            if batch.claims > 2 * CLAIMS_FUSE:
                voids.append(void(item, self.name, now_ms, "claimed-too-often", f"{batch.claims} times at {self.name}"))
                continue
            try:
                self.patiently(partial(self.owner.ledger.mark, claim.owner, batch, i))
            except Lost:
                return
            bad, good, inputs = self._load([item], now_ms)
            voids += bad
            try:
                score, spent_s = self.batcher.score(inputs, batch.lane, alone=True)
            except Exception as error:
                log.exception("engine failed", tier=self.name, item=item.id)
                failed.append(self._blame(good[0], batch.lane, now_ms, error))
                continue
            sound += good
            scores += score
            device_s += spent_s
        self._decide(claim, [batch], batch.lane, sound, scores, voids, device_s, begun_s, failed)

    def _load(self, items: Sequence[Item], now_ms: int) -> tuple[list[Verdict], list[Item], list[Any]]:
        """Verdicts for what cannot be loaded or is overdue; the sound items, and the engine's inputs for them."""
        ended: list[Verdict] = [
            settle_held(i, now_ms, "deadline", self.name) for i in items if 0 < i.deadline_ms <= now_ms
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
        lane: str,
        items: Sequence[Item],
        scores: Sequence[float | None],
        voids: list[Verdict],
        device_s: float,
        begun_s: float,
        failed: Sequence[Child] = (),
    ) -> None:
        latency_ms = round((time.monotonic() - begun_s) * 1000, 3)
        now_ms = claim.now_us // 1000 + int(latency_ms)
        settled = voids
        climbing: list[Item] = []
        abstained = 0
        calibrator, tier, model, next_tier = self._spec.calibrator, self._tier, self._model, self._next
        for item, score in zip(items, scores, strict=True):
            cast = vote(score, calibrator, tier, model, latency_ms)
            abstained += cast is None
            voted = with_vote(item, cast)
            end = decide(voted, tier, next_tier, now_ms)
            if isinstance(end, Verdict):
                settled.append(end)
            else:
                climbing.append(voted)
        children = list(failed)
        if settled:
            children.append(verdict_batch(settled, lane))
        if climbing and next_tier:
            # Apart by deadline: a batch is routed when its earliest one comes.
            parts = [i for i in climbing if i.deadline_ms], [i for i in climbing if not i.deadline_ms]
            children += [item_batch(part, next_tier, lane) for part in parts if part]
        counts = {
            "scored": len(items),
            "settled": len(settled),
            "escalated": len(climbing),
            "abstained": abstained,
            "device_us": round(device_s * 1e6),
        }
        self._settle(claim, batches, children, counts)

    def _blame(self, item: Item, lane: str, now_ms: int, error: Exception) -> Child:
        """The engine failed on this item alone: that is its fault; after a back-off it may try again, a few times."""
        delivery = self._profile.delivery
        faults = item.faults + 1
        item = replace(item, faults=faults)
        if faults >= delivery.max_faults:
            detail = f"{type(error).__name__}: {error}"
            return verdict_batch([void(item, self.name, now_ms, "engine-error", detail)], lane)
        backoff_s = min(delivery.backoff_max_s, delivery.backoff_s * 2**faults) * random.uniform(0.5, 1)  # noqa: S311 - jitter
        return item_batch([item], self.name, lane, now_ms + int(backoff_s * 1000), apart=True)

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
