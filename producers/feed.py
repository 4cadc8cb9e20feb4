"""From a source's photos to admission: read ahead, take in, close a batch when it is full or has lingered."""

import hashlib
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from msgspec import Struct

from configs.errors import PhotoError
from configs.profile import Photos, Profile
from producers.admission import Admission
from producers.intake import Taken, take
from producers.sources import Photo, Source, printable
from routing.messages import Item
from routing.refusals import Misplaced

#: Photos that are read and decoded ahead of admission.
_AHEAD = 64
#: Intake decodes (Pillow lets other threads run meanwhile).
_INTAKE_THREADS = 2
#: Of a sequence's name, in characters: it travels with each of its photos.
_SEQUENCE_LIMIT = 200
#: Batches of one admission, so that one fsync of the journal covers several when photos come fast.
_BATCHES_AT_ONCE = 4


class Pace(Struct, frozen=True):
    """How photos are fed: ``rate`` a second at most (0: as they come), a batch's bounds, an item's deadline."""

    max_items: int
    linger_ms: float
    rate: float = 0.0
    deadline_ms: int = 0


class _Entry(Struct):
    item: Item
    data: bytes = b""
    bad: tuple[str, str] | None = None


class Feed:
    """Feeds one source until it ends or ``ending`` is set.

    Args:
        source: where photos come from.
        admission: opened by run().
        profile: what intake accepts.
        pace: how.
        training: digests of photos that a model of the profile was trained on.
        ending: set it to stop after the batch in hand.
    """

    def __init__(
        self,
        source: Source,
        admission: Admission,
        profile: Profile,
        pace: Pace,
        training: frozenset[bytes],
        ending: threading.Event,
    ) -> None:
        self._source = source
        self._admission = admission
        self._policy = profile.photos
        self._pace = pace
        self._training = training
        self._ending = ending
        self.fed = 0
        self.bad = 0

    def run(self) -> None:
        """Feeds to the end, going back to the ledger's offset whenever it stands elsewhere.

        Raises:
            FleetError: the source, the server or the journal cannot be used.
        """
        start = self._admission.open()
        while True:
            try:
                self._feed_from(start)
                if not self._ending.is_set():
                    self._admission.close()
            except Misplaced as misplaced:
                start = min(misplaced.offset, self._admission.journal.end)
            else:
                return

    def _feed_from(self, start: int) -> None:
        ahead: queue.Queue[Future[_Entry] | Exception | None] = queue.Queue(_AHEAD)
        over = threading.Event()
        reader = threading.Thread(target=self._read, args=(start, ahead, over), name="reader", daemon=True)
        reader.start()
        try:
            for entries in self._batches(ahead):
                photos = [entry.data for entry in entries]
                bad = {entry.item.position: entry.bad for entry in entries if entry.bad}
                if not self._admission.admit([entry.item for entry in entries], photos, bad):
                    return
                self.fed += len(entries)
                self.bad += len(bad)
        finally:
            over.set()
            reader.join()

    def _read(self, start: int, ahead: "queue.Queue[Future[_Entry] | Exception | None]", over: threading.Event) -> None:
        """The reader thread: photos in order as futures of their intake; an exception or None ends the stream."""

        def hand(x: Future[_Entry] | Exception | None) -> bool:
            while not over.is_set():
                try:
                    ahead.put(x, timeout=0.2)
                except queue.Full:
                    continue
                return True
            return False

        begun_s, position = time.monotonic(), start
        with ThreadPoolExecutor(_INTAKE_THREADS, thread_name_prefix="intake") as pool:
            end: Exception | None = RuntimeError("the reader ended")
            try:
                for photo in self._source.photos(start):
                    if self._pace.rate:
                        due_s = begun_s + (position - start) / self._pace.rate
                        if self._ending.wait(max(0.0, due_s - time.monotonic())):
                            break
                    if self._ending.is_set() or not hand(pool.submit(self._entry, photo, position)):
                        break
                    position += 1
                end = None
            except Exception as error:  # noqa: BLE001 - raised again where the batches are closed
                end = error
            finally:
                # Whatever ended it, the batches must not wait for more.
                hand(end)

    def _entry(self, photo: Photo, position: int) -> _Entry:
        """Intake of one photo: what is stored, or why it cannot be."""
        deadline_ms = self._pace.deadline_ms
        now_ms = int(time.time() * 1000)
        taken, bad = _take(photo, self._policy)
        item = Item(
            source=self._admission.source,
            position=position,
            origin=_plain(photo.origin),
            label=photo.label,
            sha256=taken.sha256,
            stored_bytes=len(taken.data),
            size_px=taken.size_px,
            focal_px=taken.focal_px,
            seen=taken.sha256 in self._training,
            taken_ms=now_ms,
            deadline_ms=now_ms + deadline_ms if deadline_ms else 0,
            sequence=_plain(photo.sequence)[:_SEQUENCE_LIMIT],
        )
        return _Entry(item, taken.data, bad)

    def _batches(self, ahead: "queue.Queue[Future[_Entry] | Exception | None]") -> Iterator[Sequence[_Entry]]:
        """Closes a batch at max_items or linger_ms, whichever comes first; several at once when photos come faster."""
        batch: list[_Entry] = []
        close_s = 0.0
        journal_end = self._admission.journal.end
        while True:
            try:
                got = ahead.get(timeout=max(0.0, close_s - time.monotonic()) if batch else None)
            except queue.Empty:
                yield batch
                batch = []
                continue
            if isinstance(got, Exception):
                if batch:
                    yield batch
                raise got
            if got is None:
                break
            entry = got.result()
            # Where the journal ends a batch ends: what lies before was admitted once already.
            if batch and entry.item.position in (journal_end, self._admission.offset):
                yield batch
                batch = []
            if not batch:
                close_s = time.monotonic() + self._pace.linger_ms / 1000
            batch.append(entry)
            if len(batch) >= self._pace.max_items and (
                ahead.empty() or len(batch) >= _BATCHES_AT_ONCE * self._pace.max_items
            ):
                yield batch
                batch = []
        if batch:
            yield batch


def _plain(name: str) -> str:
    """A name without control characters: PostgreSQL takes no NUL, and people read it."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", printable(name)).strip()


def _take(photo: Photo, policy: Photos) -> tuple[Taken, tuple[str, str] | None]:
    if photo.data is None:
        return Taken(data=b"", sha256=bytes(32), size_px=(0, 0), focal_px=0.0), ("unreadable", photo.unreadable)
    try:
        return take(photo.data, policy), None
    except PhotoError as error:
        return Taken(data=b"", sha256=hashlib.sha256(photo.data).digest(), size_px=(0, 0), focal_px=0.0), (
            error.reason,
            str(error),
        )
