"""Admission: what intake took becomes batches in the ledger, exactly once, however often this is interrupted.

The order is bytes, ledger, doorbell, journal. The point to go on from is the ledger's offset, never a file of the
producer's.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from configs.errors import BusyError
from configs.profile import Lane, Profile
from producers.journal import Journal
from routing.batches import item_batch, verdict_batch
from routing.broker import Doorbells
from routing.decision import void
from routing.failpoints import Window, failpoint
from routing.ledger import Ledger
from routing.messages import Item
from routing.patience import StoreAwayError, patiently
from routing.refusals import Full, Misplaced, Missing, Zombie
from routing.store import PhotoStore

log = structlog.get_logger(__name__)

_FULL_PAUSE_S = 0.05
_SAY_FULL_EVERY_S = 5.0

#: The stop that a photo which was bad at intake is voided at.
INTAKE = "intake"


class Admission:
    """One source's way into the fleet.

    Args:
        source: the stream, run id included.
        profile: the fleet.
        ledger: where batches go.
        store: where bytes go.
        doorbells: how the first tier is woken.
        journal: what was admitted, outside the server.
        lane: live or bulk.
        go_on: asked while waiting; False: stop waiting (the photos in hand were not admitted).
    """

    def __init__(
        self,
        source: str,
        profile: Profile,
        ledger: Ledger,
        store: PhotoStore,
        doorbells: Doorbells,
        journal: Journal,
        lane: Lane,
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self.source = source
        self.journal = journal
        self._profile = profile
        self._ledger = ledger
        self._store = store
        self._doorbells = doorbells
        self._lane: Lane = lane
        self._go_on = go_on
        self._epoch = 0
        self._max_bytes = 0
        self._said_full_s = 0.0
        #: Seconds spent waiting at the admission bound.
        self.waited_s = 0.0
        self.offset = 0

    def open(self) -> int:
        """Opens the source; the position to read on from: whatever the ledger or the journal lacks."""
        self._epoch, self.offset = patiently(lambda: self._ledger.open(self.source, self._lane), self._go_on)
        self._max_bytes = self._profile.admission.max_bytes
        if self._store.in_server and (memory := patiently(self._ledger.maxmemory_bytes, self._go_on)):
            # Photos may fill half of the server's memory: what frees it must always find room to work.
            self._max_bytes = min(self._max_bytes, memory // 2)
        return min(self.offset, self.journal.end)

    def close(self) -> None:
        """Nothing more will come.

        Raises:
            Misplaced: the server went back in time since: read on from its offset.
            BusyError: somebody else produces this source since.
        """
        try:
            patiently(lambda: self._ledger.close(self.source, self._epoch, self.offset), self._go_on)
        except Misplaced as misplaced:
            self.offset = misplaced.offset
            raise
        except Zombie:
            raise self._superseded() from None

    def _superseded(self) -> BusyError:
        return BusyError(f"source {self.source!r} was opened by another producer: this one stops")

    def admit(self, items: Sequence[Item], photos: Sequence[bytes], bad: Mapping[int, tuple[str, str]]) -> bool:
        """Admits consecutive positions, waiting as long as the fleet is full.

        Args:
            items: in order of position, those that are bad at intake among them.
            photos: the bytes of each item; empty for one that is bad. An empty sequence: pixels live elsewhere.
            bad: (reason, detail) by position.

        Returns:
            False when waiting was cut short: nothing was admitted.

        Raises:
            Misplaced: the source stands elsewhere (the server went back in time): read on from its offset.
            BusyError: somebody else produces this source since.
            DiskError: the journal's disk failed, or was full until waiting was cut short.
        """
        start, end = items[0].position, items[-1].position + 1
        if end > self.offset:
            if not self._into_ledger(start, end, items, photos, bad):
                return False
            self.offset = end
        # Positions that the journal has already were admitted before the server went back in time.
        if end > self.journal.end:
            # A disk that is full has space again one day; what is in the ledger already waits for its line.
            patiently(
                lambda: self.journal.admitted(
                    start,
                    end,
                    labels=[item.label for item in items],
                    origins=[item.origin for item in items],
                    seen=[item.seen for item in items],
                    bad=[(position, reason) for position, (reason, _) in bad.items()],
                ),
                lambda: self._go_on() and not self.journal.broken,
            )
        return True

    def _into_ledger(
        self, start: int, end: int, items: Sequence[Item], photos: Sequence[bytes], bad: Mapping[int, tuple[str, str]]
    ) -> bool:
        in_server = self._store.in_server and bool(photos)
        stored = [(item.position, data) for item, data in zip(items, photos, strict=True) if data] if photos else []
        if stored:
            self._put(stored)
        failpoint(Window.BYTES_ADMIT)
        good = [item for item in items if item.position not in bad] if bad else items
        size, now_ms = self._profile.batch.max_items, int(time.time() * 1000)
        first = self._profile.tiers[0].name
        children = [item_batch(good[i : i + size], first, self._lane) for i in range(0, len(good), size)]
        if bad:
            voids = [void(i, INTAKE, now_ms, *bad[i.position]) for i in items if i.position in bad]
            children.append(verdict_batch(voids, self._lane))
        while True:
            try:
                woken = patiently(
                    lambda: self._ledger.admit(
                        self.source,
                        self._epoch,
                        start,
                        end,
                        self._lane,
                        children,
                        stored=[position for position, _ in stored] if in_server else [],
                        max_items=self._profile.admission.max_items,
                        max_bytes=self._max_bytes,
                    ),
                    self._go_on,
                )
            except Full as full:
                if not self._wait(full):
                    return False
            except Missing:
                # Waited longer than the bytes' time to live.
                self._put(stored)
            except Misplaced as misplaced:
                self.offset = misplaced.offset
                raise
            except Zombie:
                raise self._superseded() from None
            else:
                failpoint(Window.ADMIT_DOORBELL)
                self._doorbells.ring(woken)
                return True

    def _put(self, stored: Sequence[tuple[int, bytes]]) -> None:
        def put() -> None:
            try:
                self._store.put(self.source, stored)
            except OSError as error:
                raise StoreAwayError(f"the photo store takes nothing: {error}") from error

        patiently(put, self._go_on)

    def _wait(self, full: Full) -> bool:
        now_s = time.monotonic()
        if now_s - self._said_full_s > _SAY_FULL_EVERY_S:
            self._said_full_s = now_s
            log.info("the fleet is full, waiting", items=full.items, stored_bytes=full.stored_bytes, source=self.source)
        time.sleep(_FULL_PAUSE_S)
        self.waited_s += time.monotonic() - now_s
        return self._go_on()
