"""Photo sources: what they yield, that they start anywhere, and what they say of a wrong layout."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from configs.errors import SourceError, UsageError
from producers.folder import Entry, FolderSource
from producers.sources import Photo, open_source, slug
from routing.messages import UNLABELLED

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "roadwork-photos"


ENTRIES = [Entry("a.jpg", 1, "o"), Entry("sub/a.jpg", 0, "o")]


def jpeg(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade % 256, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def photos(spec: Path | str, limit: int | None = None, start: int = 0) -> list[Photo]:
    return list(open_source(str(spec), limit).photos(start))


def check_restarts(spec: Path | str, limit: int | None = None) -> list[Photo]:
    """From any position, twice, the source yields what a full pass has there."""
    source = open_source(str(spec), limit)
    whole = list(source.photos(0))
    assert source.total == len(whole)
    for start in range(len(whole) + 2):
        assert list(source.photos(start)) == whole[start:]
    assert photos(spec, limit) == whole
    return whole


def manifest(folder: Path, text: str | bytes, *files: str) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    for shade, file in enumerate(files):
        (folder / file).write_bytes(jpeg(shade))
    return folder


def test_manifest(tmp_path: Path) -> None:
    """Rows in the order of the manifest, looked up beside it and in images/, with label and origin; commas are kept."""
    text = (
        'label,file,licence,source_repo\r\n1,a.jpg,"MIT, or so",me/one\r\n\r\n'
        '0,"b, second.jpg","two\r\nlines",me/two\r\n,c.jpg,,\r\n'
    )
    folder = manifest(tmp_path / "My Photos_2", text, "images/a.jpg", "b, second.jpg", "images/c.jpg")
    source = open_source(str(folder))
    assert (source.name, source.total, source.note) == ("my-photos-2", 3, "")
    assert check_restarts(folder) == [
        Photo("a.jpg", jpeg(0), "me/one", 1),
        Photo("b, second.jpg", jpeg(1), "me/two", 0),
        Photo("c.jpg", jpeg(2), "my-photos-2", UNLABELLED),
    ]
    assert len(check_restarts(folder, limit=2)) == 2
    assert len(check_restarts(folder, limit=9)) == 3


def test_manifest_prefers_source_and_takes_a_byte_order_mark(tmp_path: Path) -> None:
    """The column source goes before source_repo, and a spreadsheet's byte order mark is no part of a column's name."""
    folder = manifest(tmp_path / "d", b"\xef\xbb\xbffile,label,source_repo,source\na.jpg,1,repo,camera\n", "a.jpg")
    assert photos(folder)[0].origin == "camera"


def test_a_manifest_names_sequences(tmp_path: Path) -> None:
    """The column sequence says which film a photo is a frame of, readable or not; an empty cell is a still photo."""
    text = "file,sequence,label\na.jpg, drive 7 ,1\nnone.jpg,drive 7,0\nb.jpg,,0\n"
    folder = manifest(tmp_path / "d", text, "a.jpg", "b.jpg")
    assert [photo.sequence for photo in check_restarts(folder)] == ["drive 7", "drive 7", ""]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "line 1: empty"),
        ("name,label\na.jpg,1\n", "line 1: no column file; it has name, label"),
        ("a.jpg\n", "line 1: no column file and no column label"),
        ("file,label\n", "line 1: a header, but no photo"),
        ("file,label\na.jpg,1\nb.jpg,yes\n", "line 3: label 'yes' is not 1, 0 or empty"),
        ("file,label\na.jpg,1\nb.jpg,0,x\n", "line 3: 3 fields, the header has 2"),
        ("file,label\na.jpg,1\nb.jpg\n", "line 3: 1 fields, the header has 2"),
        ('file,label\na.jpg,1\n"b.jpg,0\nc.jpg,0\n', "unexpected end of data"),
        (b"file,label\na.jpg,1\n\xff\xfe.jpg,0\n", "line 3: not UTF-8"),
    ],
)
def test_malformed_manifest(tmp_path: Path, text: str | bytes, cause: str) -> None:
    """A malformed manifest stops everything before the first photo, with its line."""
    with pytest.raises(SourceError) as error:
        open_source(str(manifest(tmp_path / "d", text, "a.jpg")))
    assert cause in str(error.value)
    assert "manifest.csv: line " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_row_does_not_stop_the_rest(tmp_path: Path) -> None:
    """Rows that lead out of the folder, to nothing, or to what is no file keep their position and say why."""
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    names = [
        "a.jpg",
        "../secret.jpg",
        f"{tmp_path}/secret.jpg",
        "link.jpg",
        "loop.jpg",
        "none.jpg",
        "",
        "images",
        "x\0y.jpg",
    ]
    names += ["fifo.jpg", "n" * 300, "inside.jpg", "deep/../../secret.jpg", "z.jpg"]
    folder = manifest(tmp_path / "d", "file,label\n" + "".join(f"{name},1\n" for name in names), "a.jpg", "z.jpg")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "inside.jpg").symlink_to("a.jpg")
    os.mkfifo(folder / "fifo.jpg")
    found = check_restarts(folder)
    assert [photo.name for photo in found if photo.data is not None] == ["a.jpg", "inside.jpg", "z.jpg"]
    assert [photo.label for photo in found] == [1] * len(names)
    assert [photo.unreadable for photo in found if photo.data is None] == [
        "the name leads out of the folder",
        "the name leads out of the folder",
        "a link that leads out of the folder",
        found[4].unreadable,  # the words for a loop differ between versions of Python
        "No such file or directory",
        "the row names no file",
        "Is a directory",
        found[8].unreadable,  # so do those for a NUL
        "not a regular file",
        "File name too long",
        "the name leads out of the folder",
    ]
    assert all(photo.unreadable for photo in found if photo.data is None)


def test_a_link_swapped_in_after_the_check_leads_nowhere(tmp_path: Path) -> None:
    """A file, or the folder that it is in, swapped for a link out while it is read: the link is never followed."""
    outside, folder = tmp_path / "outside", tmp_path / "d"
    for place in (outside, folder / "sub"):
        place.mkdir(parents=True)
        (place / "a.jpg").write_bytes(b"secret" if place == outside else jpeg())
    (folder / "a.jpg").write_bytes(jpeg())
    ending = threading.Event()

    def swap() -> None:
        while not ending.is_set():
            for inside, target in ((folder / "a.jpg", outside / "a.jpg"), (folder / "sub", outside)):
                kept = inside.with_name(".kept")
                inside.rename(kept)
                inside.symlink_to(target)
                inside.unlink()
                kept.rename(inside)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        found = [photo for _ in range(1500) for photo in FolderSource(folder, "d", ENTRIES, "").photos(0)]
    finally:
        ending.set()
        swapping.join()
    assert {photo.data for photo in found} == {jpeg(), None}
    # The swap was met at every step: some photos were whole, some links were refused.
    assert len({photo.unreadable for photo in found}) > 1


def test_a_manifest_is_a_file_of_its_folder(tmp_path: Path) -> None:
    """A manifest that is a link out of the folder, a FIFO or a device is refused; nothing of it is read or shown."""
    (tmp_path / "secret").write_text("root:x:0:0\n")
    for name, make in (
        ("link", lambda path: path.symlink_to(tmp_path / "secret")),
        ("fifo", os.mkfifo),
        ("device", lambda path: path.symlink_to("/dev/zero")),
    ):
        folder = tmp_path / name
        folder.mkdir()
        make(folder / "manifest.csv")
        with pytest.raises(SourceError, match=r"manifest\.csv: (a link that leads out|not a regular file)") as error:
            open_source(str(folder))
        assert "root:x" not in str(error.value)


def test_labelled_folders(tmp_path: Path) -> None:
    """Sub-folders give the labels; both are evenly mixed, each in its own order; hidden files are left out."""
    folder = tmp_path / "set"
    for name in ("roadwork/b.jpg", "roadwork/a.PNG", "no_roadwork/x/1.jpg", "no_roadwork/2.jpeg", "no_roadwork/3.heic"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for name in (".hidden.jpg", "roadwork/.trash/c.jpg", "roadwork/notes.txt", "cover.jpg", "other/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert open_source(str(folder)).note == "2 photos outside roadwork/ and no_roadwork/ are left out"
    assert [(photo.name, photo.label) for photo in check_restarts(folder)] == [
        ("no_roadwork/2.jpeg", 0),
        ("roadwork/a.PNG", 1),
        ("no_roadwork/3.heic", 0),
        ("roadwork/b.jpg", 1),
        ("no_roadwork/x/1.jpg", 0),
    ]
    assert check_restarts(folder)[0].data == b"no_roadwork/2.jpeg"


def test_folder_without_labels(tmp_path: Path) -> None:
    """Any folder of photos is a source: sorted by path, without labels, and it says what that means."""
    for name in ("b.jpg", "a/z.webp", "a/b.jpg", "C.bmp"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(jpeg())
    source = open_source(str(tmp_path / "d"))
    assert source.note == "no labels: probabilities, but no MCC"
    assert [photo.name for photo in check_restarts(tmp_path / "d")] == ["C.bmp", "a/b.jpg", "a/z.webp", "b.jpg"]
    assert {(photo.label, photo.origin) for photo in source.photos(0)} == {(UNLABELLED, "d")}


def test_a_photo_that_is_gone_keeps_its_position(tmp_path: Path) -> None:
    """A file that is deleted after the listing is yielded with its reason, the next one with its bytes."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    source = open_source(str(tmp_path))
    (tmp_path / "a.jpg").unlink()
    assert [photo.unreadable for photo in source.photos(0)] == ["No such file or directory", ""]


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    """Its name can be printed and encoded, its bytes are read."""
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg())
    assert photos(tmp_path) == [Photo("caf\\xe9.jpg", jpeg(), slug(tmp_path.name), UNLABELLED)]


def test_nothing_to_open(tmp_path: Path) -> None:
    """An empty folder, a missing one and a file of another kind are one clear line each."""
    with pytest.raises(SourceError, match=r"no photo in it$"):
        open_source(str(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match=r"1 \.parquet files: name one of them"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(str(tmp_path / "none"))
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with pytest.raises(SourceError, match=r"neither a folder nor a \.parquet file"):
        open_source(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_is_at_least_one(tmp_path: Path, limit: int) -> None:
    """A limit under 1 is a mistyped flag."""
    with pytest.raises(UsageError, match=f"--limit {limit}"):
        open_source(str(tmp_path), limit)


def write_parquet(path: Path, images: Any, labels: Any, group: int = 7) -> Path:
    parquet.write_table(
        pa.table({"id": pa.array(range(len(labels))), "image": images, "label": labels}), path, row_group_size=group
    )
    return path


def hub_images(count: int) -> Any:
    rows = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(count)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@pytest.mark.parametrize("group", [1, 7, 40, 100])
def test_parquet(tmp_path: Path, group: int) -> None:
    """The hub's layout: rows in order, from any position, whatever the row groups and the batches."""
    path = write_parquet(tmp_path / "Test-0.parquet", hub_images(40), pa.array([i % 2 for i in range(40)]), group)
    found = check_restarts(path)
    assert [photo.label for photo in found] == [i % 2 for i in range(40)]
    assert found[39] == Photo(f"{path}#39 (39.jpg)", jpeg(39), "test-0", 1)
    assert len(check_restarts(path, limit=17)) == 17


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("labels", [pa.array([True, False, None]), pa.array([1, 0, None], pa.int8())])
def test_parquet_of_plain_bytes(tmp_path: Path, kind: Any, labels: Any) -> None:
    """Images as plain bytes and labels as bool or any integer are read too; no label is UNLABELLED."""
    path = write_parquet(tmp_path / "a.parquet", pa.array([jpeg(0), jpeg(1), jpeg(2)], kind), labels)
    assert [(photo.data, photo.label) for photo in check_restarts(path)] == [
        (jpeg(0), 1),
        (jpeg(1), 0),
        (jpeg(2), UNLABELLED),
    ]


def test_parquet_rows_without_a_photo(tmp_path: Path) -> None:
    """A null, a path without bytes and a label that is none keep their position and say why; -1 is the hub's "none"."""
    images = pa.array(
        [
            None,
            {"bytes": None, "path": "/etc/passwd"},
            {"bytes": jpeg(), "path": None},
            {"bytes": jpeg(), "path": None},
        ],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    found = check_restarts(write_parquet(tmp_path / "a.parquet", images, pa.array([1, 0, 2, -1])))
    assert [(photo.unreadable, photo.label) for photo in found] == [
        ("the row holds no bytes", 1),
        ("the row holds no bytes, only a path", 0),
        ("label 2 is neither 1 nor 0", UNLABELLED),
        ("", UNLABELLED),
    ]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", "a", None, ""]), ["a", "a", "", ""]),
        (pa.array(["a", "a", None, ""], pa.large_string()), ["a", "a", "", ""]),
        (pa.array([7, 7, None, 0]), ["7", "7", "", "0"]),
    ],
)
def test_parquet_names_sequences(tmp_path: Path, column: Any, expected: list[str]) -> None:
    """The column sequence is read as well, of rows without a photo too; null is a still photo."""
    path = tmp_path / "a.parquet"
    images = pa.array([jpeg(0), None, jpeg(2), jpeg(3)], pa.binary())
    parquet.write_table(pa.table({"image": images, "label": [1, 0, 1, 2], "sequence": column}), path)
    assert [photo.sequence for photo in check_restarts(path)] == expected


def test_parquet_sequences_of_another_type(tmp_path: Path) -> None:
    """A column of that name that names nothing is told at once; one that is not UTF-8 is told by its row."""
    path = tmp_path / "a.parquet"
    images = pa.array([jpeg(0), jpeg(1)], pa.binary())
    parquet.write_table(pa.table({"image": images, "label": [1, 0], "sequence": [0.5, 1.5]}), path)
    with pytest.raises(SourceError, match=r"a\.parquet: column sequence is double, not string or integer$"):
        open_source(str(path))
    names = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"image": images, "label": [1, 0], "sequence": names}), path)
    with pytest.raises(SourceError, match=r"a\.parquet#1: .*utf-8"):
        photos(path)


def test_parquet_of_another_layout(tmp_path: Path) -> None:
    """Other columns, or other types in them, are told by name."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"img": pa.array([jpeg()]), "class": pa.array([1])}), path)
    with pytest.raises(SourceError, match="its columns are img: binary, class: int64"):
        open_source(str(path))
    write_parquet(path, pa.array([jpeg()]), pa.array(["roadwork"]))
    with pytest.raises(SourceError, match="its columns are id: int64, image: binary, label: string"):
        open_source(str(path))


def test_damaged_parquet(tmp_path: Path) -> None:
    """No Parquet file, a missing one and an empty one fail at once; damage within is told with its row."""
    path = tmp_path / "a.parquet"
    with pytest.raises(SourceError, match=r"a\.parquet: .*No such file"):
        open_source(str(path))
    path.write_bytes(b"not parquet at all")
    with pytest.raises(SourceError, match=r"a\.parquet: .*magic"):
        open_source(str(path))
    write_parquet(path, pa.array([], pa.binary()), pa.array([], pa.int64()))
    with pytest.raises(SourceError, match="no photo in it"):
        open_source(str(path))
    write_parquet(path, hub_images(40), pa.array([1] * 40), group=10)
    chunk = parquet.read_metadata(path).row_group(2).column(1)
    damaged = bytearray(path.read_bytes())
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    damaged[at : at + 64] = b"\xff" * 64
    path.write_bytes(damaged)
    found: list[Photo] = []
    with pytest.raises(SourceError, match=r"a\.parquet: from row 16 on: ") as error:
        found.extend(open_source(str(path)).photos(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "1.5", "1e3", "+3", "٣", " 3", "99999999999999"])
def test_rendered_count(count: str) -> None:
    """Anything but a whole number from 1 up is a mistyped argument."""
    with pytest.raises(UsageError, match="give a whole number from 1 to"):
        open_source(f"rendered:{count}")


def test_rendered() -> None:
    """Rendered scenes are JPEG with both labels, the same each time, and say what their figures are worth."""
    source = open_source("rendered:20", limit=8)
    assert (source.name, source.total) == ("rendered", 8)
    assert source.note == "rendered, same generator as in training: a smoke figure"
    found = list(source.photos(0))
    assert len(found) == 8
    assert list(source.photos(5)) == found[5:]
    assert {photo.label for photo in found} == {0, 1}
    assert all(photo.data is not None and photo.data.startswith(b"\xff\xd8\xff") for photo in found)


OPEN_NATIX = """
from configs.errors import FleetError
from producers.sources import open_source
try:
    open_source("natix")
except FleetError as error:
    print(type(error).__name__, error)
"""


def natix_without_a_hub(**environment: str) -> tuple[str, float]:
    """What opening natix says, and the seconds it took; in its own process: the client reads the environment once."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", OPEN_NATIX],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("SourceError ")
    assert "give its folder or FILE.parquet" in done.stdout
    return done.stdout, time.monotonic() - began


def test_natix_offline() -> None:
    """HF_HUB_OFFLINE is respected and named."""
    said, took_s = natix_without_a_hub(HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in said
    assert took_s < 15


def test_natix_refused() -> None:
    """A hub that refuses connections is one clear line at once, with the address that HF_ENDPOINT gave."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    said, took_s = natix_without_a_hub(HF_ENDPOINT=address)
    assert f"cannot reach {address}" in said
    assert took_s < 15


def test_natix_silent() -> None:
    """A hub that takes the connection and never answers is given up in 15 s."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said, took_s = natix_without_a_hub(HF_ENDPOINT=address)
    assert address in said
    assert took_s < 20


@pytest.mark.skipif(not SHARED.is_dir(), reason="no labelled street photos beside the repository")
def test_real_manifest() -> None:
    """The set of real photos is read whole: every file, both labels, an origin for each."""
    source = open_source(str(SHARED))
    assert (source.name, source.total) == ("roadwork-photos", 1082)
    found = list(source.photos(1000))
    assert len(found) == 82
    assert all(photo.data and photo.label in (0, 1) and "/" in photo.origin for photo in found)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Roadwork Photos", "roadwork-photos"),
        ("__", "photos"),
        ("Größe", "gr-e"),
        ("a" * 40, "a" * 32),
        ("x" * 31 + "-y", "x" * 31),
    ],
)
def test_slug(text: str, name: str) -> None:
    """A name has lower-case letters, digits and single dashes, 32 at most, and is never empty."""
    assert slug(text) == name
