"""What somebody could do who writes to the ledger, or lends it a name: not read, write or delete a file elsewhere."""

from pathlib import Path

import pytest

from routing.store import FilePhotos
from tests.ledgers import photo


@pytest.mark.parametrize(
    "source", ["../outside", "..", "a/../../outside", "/outside", ".", "%2E%2E/outside", "x\n/../.."]
)
def test_no_source_name_leads_out_of_the_photo_store(tmp_path: Path, source: str) -> None:
    """Whatever name a ledger entry gives, bytes are read, written and deleted under the store's root alone."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for place in (outside, tmp_path):
        (place / "000000000000.jpg").write_bytes(b"secret")
    store = FilePhotos(str(tmp_path / "store"))
    item = photo(source, 0)
    assert store.get([item]) == [None]
    store.put(source, [(0, b"photo")])
    assert store.get([item]) == [b"photo"]
    store.drop(source, [0])
    assert store.get([item]) == [None]
    assert {p.read_bytes() for p in (outside / "000000000000.jpg", tmp_path / "000000000000.jpg")} == {b"secret"}
    assert {p.name for p in tmp_path.iterdir()} == {"outside", "store", "000000000000.jpg"}
