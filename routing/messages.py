"""What travels: an item with the votes that it has so far, and the verdict that it ends as.

On the wire a batch's items are one blob: a version byte, then MessagePack arrays (msgspec). Arrays may grow at the end:
an older reader ignores what it does not know, so the version byte changes only when a field changes its meaning.

No message can be part of a cycle: gc=False spares the collector their thousands.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from configs.errors import MessageError, NewerMessageError

WIRE_VERSION = 1

#: Label values on the wire.
UNLABELLED = -1


class Vote(Struct, frozen=True, array_like=True, gc=False):
    """What one tier's model says of one photo."""

    tier: str
    model: str
    #: Calibrated P(roadwork), strictly between 0 and 1.
    p: float
    weight: float
    #: Time from the claim to the score.
    latency_ms: float


class Item(Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """One photo on its way. Its id is source:position; its bytes wait in the photo store under that id."""

    #: The stream that it came with, run id included; positions count from 0 within it.
    source: str
    position: int
    #: The data set or camera that it is from, for figures per origin.
    origin: str
    #: 1 roadwork, 0 none, UNLABELLED.
    label: int
    #: Of the photo as it arrived, 32 bytes.
    sha256: bytes
    #: Bytes in the photo store; 0 when it holds none.
    stored_bytes: int
    #: Width and height as it arrived, in pixels.
    size_px: tuple[int, int]
    #: Focal length in pixels of the original; 0 when unknown.
    focal_px: float = 0.0
    #: In the training list of a model of the profile.
    seen: bool = False
    #: Unix time at intake.
    taken_ms: int = 0
    #: Unix time by which a verdict is due; 0: none.
    deadline_ms: int = 0
    votes: tuple[Vote, ...] = ()
    #: Deaths and errors that this item alone caused at its tier.
    faults: int = 0
    #: A replay from quarantine: late by definition, never in the ordered windows.
    replay: bool = False
    #: How often its tier sent it back because the engine was away: nobody's fault, and only the back-off grows.
    tries: int = 0
    #: The film or burst that it is a frame of, in the order of positions; empty for a still photo.
    sequence: str = ""

    @property
    def id(self) -> str:
        """source:position."""
        return f"{self.source}:{self.position}"


class Verdict(Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """The end of an item: a probability, or a void with its reason."""

    item: Item
    #: Pooled P(roadwork); None for a void.
    p: float | None
    #: The tier that settled it, or the stop that voided it.
    tier: str
    #: Why it is a void (quarantined, shed, bad at intake), or how it was settled if not by a threshold ("deadline").
    reason: str = ""
    #: What a person may need to understand the reason.
    detail: str = ""
    settled_ms: int = 0

    @property
    def void(self) -> bool:
        """It has no probability: it takes its position in the windows and counts as quarantined."""
        return self.p is None


class Claimed(Struct, frozen=True):
    """A batch as claim() hands it out: this owner's, until it is settled, under ``token``."""

    bid: str
    token: str
    lane: str
    order: int
    #: Microseconds: no verdict written from this batch may carry a smaller generation.
    gen: int
    #: How often it was claimed, this claim included.
    claims: int
    #: Run alone, one item at a time: an owner died with it in hand.
    apart: bool
    #: Items that an owner died on, by index: how often.
    deaths: dict[int, int]
    blob: bytes
    n: int
    stored_bytes: int
    #: At the route stop: the tier that it was routed from.
    came_from: str = ""


class Child(Struct, frozen=True):
    """A batch to be written: by admit, or by settle in its parents' place."""

    bid: str
    #: A tier's name, or one of the stops.
    tier: str
    lane: str
    n: int
    stored_bytes: int
    blob: bytes
    #: Unix time of the earliest deadline in it; 0: none.
    deadline_ms: int = 0
    #: Unix time before which nobody may claim it (back-off); 0: at once.
    not_before_ms: int = 0
    apart: bool = False


_encoder = msgspec.msgpack.Encoder()
_items = msgspec.msgpack.Decoder(list[Item])
_verdicts = msgspec.msgpack.Decoder(list[Verdict])


def encode(batch: Sequence[Item] | Sequence[Verdict]) -> bytes:
    """The blob of a batch."""
    return bytes([WIRE_VERSION]) + _encoder.encode(batch)


def _payload(blob: bytes) -> memoryview:
    if not blob:
        raise MessageError("an empty message", blob)
    if blob[0] > WIRE_VERSION:
        raise NewerMessageError(f"message version {blob[0]}; this process reads up to {WIRE_VERSION}: update it", blob)
    if blob[0] != WIRE_VERSION:
        raise MessageError(f"message version {blob[0]} is not one of ours", blob)
    return memoryview(blob)[1:]


def decode_items(blob: bytes) -> list[Item]:
    """The items of a tier's batch.

    Raises:
        MessageError: the blob is anything else.
    """
    try:
        return _items.decode(_payload(blob))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"not a batch of items: {error}", blob) from None


def decode_verdicts(blob: bytes) -> list[Verdict]:
    """The verdicts of a collector's batch.

    Raises:
        MessageError: the blob is anything else.
    """
    try:
        return _verdicts.decode(_payload(blob))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"not a batch of verdicts: {error}", blob) from None
