"""What travels, and what cannot be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import MessageError, NewerMessageError
from routing.messages import WIRE_VERSION, Item, Verdict, Vote, decode_items, decode_verdicts, encode

VOTE = Vote("scout-s", "scout-s@1", 0.25, 1.0, 3.5)
ITEM = Item(
    source="s-1", position=7, origin="o", label=1, sha256=b"\x01" * 32, stored_bytes=9, size_px=(4, 3), votes=(VOTE,)
)


def test_items_come_back_as_they_went() -> None:
    """Encoding and decoding a batch of items changes nothing."""
    assert decode_items(encode([ITEM, ITEM])) == [ITEM, ITEM]


def test_verdicts_come_back_as_they_went() -> None:
    """Encoding and decoding verdicts and voids changes nothing."""
    verdicts = [Verdict(item=ITEM, p=0.5, tier="scout-s"), Verdict(item=ITEM, p=None, tier="intake", reason="empty")]
    assert decode_verdicts(encode(verdicts)) == verdicts


@given(st.binary(max_size=200))
def test_whatever_is_no_batch_is_one_named_error(data: bytes) -> None:
    """Any bytes decode or raise MessageError that carries them."""
    for decode in (decode_items, decode_verdicts):
        try:
            decode(data)
        except MessageError as error:
            assert error.data == data  # noqa: PT017 - the bytes matter, whichever example it is


@given(st.binary(min_size=1, max_size=400))
def test_a_damaged_batch_is_one_named_error(noise: bytes) -> None:
    """A batch with a damaged tail decodes or raises MessageError."""
    blob = encode([ITEM] * 3)
    try:
        decode_items(blob[: -len(noise)] + noise)
    except MessageError:
        return


def test_a_newer_version_is_told_apart() -> None:
    """A message from a newer process is not damaged: somebody else can read it."""
    with pytest.raises(NewerMessageError, match="update"):
        decode_items(bytes([WIRE_VERSION + 1]) + encode([ITEM])[1:])


def test_an_older_reader_ignores_new_fields() -> None:
    """A field added at the end of an array does not trouble who does not know it."""
    import msgspec

    raw = msgspec.msgpack.decode(encode([ITEM])[1:])
    raw[0].append("new")
    assert decode_items(bytes([WIRE_VERSION]) + msgspec.msgpack.encode(raw)) == [ITEM]


def test_an_id_is_source_and_position() -> None:
    """Two equal photos are two images."""
    assert ITEM.id == "s-1:7"
