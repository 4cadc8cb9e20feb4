"""Intake: what is stored unchanged, what is shrunk, what is refused and why."""

import hashlib
import io
import os
import random
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from configs.errors import PhotoError
from configs.profile import Photos
from producers import camera
from producers.intake import MAX_SCANS, take

POLICY = Photos()
SMALL = Photos(max_side_px=64)
ARITHMETIC = Path(__file__).parent / "data" / "arithmetic.jpg"
FULLSIZE = Path(__file__).parents[2] / "shared" / "roadwork-photos" / "fullsize"


def picture(width_px: int = 320, height_px: int = 200, mode: str = "RGB") -> Image.Image:
    """Red at the top left, green to the right, blue at the bottom, with enough texture to fill many JPEG blocks."""
    noise = Image.frombytes("RGB", (40, 25), random.Random(7).randbytes(40 * 25 * 3)).resize((width_px, height_px))
    image = Image.new("RGB", (width_px, height_px), (0, 160, 0))
    image.paste((200, 0, 0), (0, 0, width_px // 2, height_px // 2))
    image.paste((0, 0, 200), (0, height_px // 2, width_px, height_px))
    return Image.blend(image, noise, 0.2).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """As a worker reads it: whole, and to RGB."""
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    return image.convert("RGB")


def exif(order: str, *tags: tuple[int, int, float], inner: tuple[tuple[int, int, float], ...] = ()) -> bytes:
    """An EXIF block with tags (number, type, value) in the first directory and in the EXIF directory."""

    def directory(at: int, entries: tuple[tuple[int, int, float], ...]) -> bytes:
        entry = struct.pack(order + "H", len(entries))
        values, behind = b"", at + 2 + 12 * len(entries) + 4
        for number, kind, value in entries:
            if kind == 5:
                field = struct.pack(order + "I", behind + len(values))
                values += struct.pack(order + "II", round(value * 1000), 1000)
            else:
                field = struct.pack(
                    order + ("HH" if kind == 3 else "I"), *((int(value), 0) if kind == 3 else (int(value),))
                )
            entry += struct.pack(order + "HHI", number, kind, 1) + field
        return entry + bytes(4) + values

    first = (*tags, (camera.EXIF_DIRECTORY, 4, 8 + 2 + 12 * (len(tags) + 1) + 4))
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8) + directory(8, first)
    return b"Exif\0\0" + start + directory(len(start), inner)


def refused(data: bytes, policy: Photos = POLICY) -> str:
    with pytest.raises(PhotoError) as error:
        take(data, policy)
    assert "\n" not in str(error.value)
    return error.value.reason


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_small_jpeg_is_stored_as_it_is(mode: str, progressive: bool) -> None:
    """A JPEG within the bound, colour or grey, keeps every byte; its digest and size are of what arrived."""
    data = encoded(picture(mode=mode), quality=70, progressive=progressive)
    taken = take(data, POLICY)
    assert taken.data == data
    assert taken.sha256 == hashlib.sha256(data).digest()
    assert taken.size_px == (320, 200)
    assert taken.focal_px == 0.0


def test_a_side_equal_to_the_bound_is_within_it() -> None:
    """The bound is inclusive: 960 px stays, 961 px is shrunk to 960."""
    assert decoded(take(encoded(picture(960, 600)), POLICY).data).size == (960, 600)
    taken = take(encoded(picture(961, 600)), POLICY)
    assert decoded(taken.data).size == (960, 599)
    assert taken.size_px == (961, 600)


def test_large_jpeg_is_shrunk_close_to_a_full_decode() -> None:
    """DCT scaling then Lanczos gives the picture that a full decode and one good resize gives."""
    data = encoded(picture(3000, 2000), quality=95)
    taken = take(data, POLICY)
    wanted = decoded(data).resize((960, 640), Image.Resampling.LANCZOS)
    assert decoded(taken.data).size == (960, 640)
    assert max(ImageStat.Stat(ImageChops.difference(decoded(taken.data), wanted)).rms) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bound_px", [960, 64])
def test_orientation_is_applied(orientation: int, bound_px: int) -> None:
    """Each of the eight EXIF orientations ends upright, the size that is told is the upright one, no EXIF remains."""
    # What turns an upright picture into the stored one: the inverse of what a viewer does.
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    upright = picture()
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    data = encoded(stored, exif=exif("<", (camera.ORIENTATION, 3, orientation)))
    taken = take(data, Photos(max_side_px=bound_px))
    result = decoded(taken.data)
    assert taken.size_px == (320, 200)
    assert result.size == ((320, 200) if bound_px == 960 else (64, 40))
    wanted = upright.resize(result.size, Image.Resampling.LANCZOS)
    assert max(ImageStat.Stat(ImageChops.difference(result, wanted)).rms) < 20
    assert (taken.data == data) == (orientation == 1 and bound_px == 960)
    if orientation > 1:
        assert not Image.open(io.BytesIO(taken.data)).getexif()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_become_jpeg(kind: str) -> None:
    """A small photo of another accepted format is re-encoded, so that every tier reads JPEG."""
    taken = take(encoded(picture(), kind), POLICY)
    assert decoded(taken.data).size == taken.size_px == (320, 200)
    assert max(ImageStat.Stat(ImageChops.difference(decoded(taken.data), picture())).rms) < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("policy", [POLICY, SMALL])
def test_every_png_mode_becomes_rgb(mode: str, policy: Photos) -> None:
    """Palette, alpha, one bit and 16 bit keep their brightness on the way to RGB."""
    grey = Image.new("L", (200, 100), 96)
    if mode == "I;16":
        image = Image.frombytes("I;16", (200, 100), struct.pack("<H", 96 * 256) * 20_000)
    elif mode == "1":
        image = Image.new("1", (200, 100), 1)
    else:
        image = grey.convert(mode)
    result = decoded(take(encoded(image, "PNG"), policy).data)
    assert ImageStat.Stat(result).mean == pytest.approx([255 if mode == "1" else 96] * 3, abs=2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("policy", [POLICY, SMALL])
def test_transparency_shows_white(mode: str, policy: Photos) -> None:
    """What is transparent shows white, not the colour that some editor left there."""
    if mode == "P":
        image, options = Image.new("P", (200, 100), 3), {"transparency": 3}
        image.putpalette(bytes(range(12)))
    else:
        image, options = Image.new(mode, (200, 100), (10, 0) if mode == "LA" else (10, 200, 30, 0)), {}
    assert ImageStat.Stat(decoded(take(encoded(image, "PNG", **options), policy).data)).mean == [255, 255, 255]


def test_cmyk_jpeg_becomes_rgb() -> None:
    """A CMYK JPEG is small enough to stay, but not every reader takes CMYK: it is re-encoded as RGB."""
    data = encoded(picture(mode="CMYK"))
    taken = take(data, POLICY)
    assert Image.open(io.BytesIO(taken.data)).mode == "RGB"
    assert max(ImageStat.Stat(ImageChops.difference(decoded(taken.data), picture())).rms) < 12


def test_phone_file_of_two_pictures_is_a_jpeg() -> None:
    """An MPO (a phone's photo with a second picture behind it) counts as the JPEG that it starts with."""
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture(160, 100)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert take(data, POLICY).data == data
    assert decoded(take(data, SMALL).data).size == (64, 40)


def test_a_very_long_photo_keeps_a_pixel() -> None:
    """A strip of 4000 x 2 pixels shrinks to one row, not to none."""
    assert decoded(take(encoded(Image.new("RGB", (4000, 2))), POLICY).data).size == (960, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "not-an-image"),
        (b"\0" * 4096, "not-an-image"),
        (encoded(picture(), "GIF"), "unsupported-format"),
        (encoded(picture(), "TIFF"), "unsupported-format"),
        (b"\0\0\0\x18ftypheic" + bytes(64), "unsupported-format"),
        (b"\0\0\0\x18ftypavif" + bytes(64), "unsupported-format"),
        (b"\xff\xd8\xff", "truncated"),
        (b"BM and nothing of a bitmap", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
    ],
)
def test_what_is_no_photo_is_refused_by_its_reason(data: bytes, reason: str) -> None:
    """Each kind of wrong file has its own reason."""
    assert refused(data) == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_photo_without_its_end_is_truncated(kind: str) -> None:
    """An upload that broke off is refused at intake and says so, in each format, wherever it broke.

    Where only the mark of the end is missing its pixels may be whole, but nobody can tell: it is refused as well.
    """
    data = encoded(picture(), kind)
    for left in (len(data) - 1, len(data) - 2, len(data) - 12, len(data) * 9 // 10, len(data) // 2, 200):
        assert refused(data[:left]) == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_what_follows_the_end_is_not_the_photos(kind: str) -> None:
    """A film behind the photo, as phones write it, is neither counted as scans nor missed when it is cut."""
    data, film = encoded(picture(), kind), random.Random(5).randbytes(8_000_000)
    assert film.count(b"\xff\xda") > MAX_SCANS
    for length in (1, 1000, len(film)):
        assert take(data + film[:length], POLICY).size_px == (320, 200)


def test_a_thumbnail_does_not_hide_the_truncation() -> None:
    """A camera's file has a whole small JPEG in its EXIF: its end is not taken for the photo's."""
    block = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + encoded(picture(40, 25))
    data = encoded(picture(), exif=block)
    assert take(data, POLICY).size_px == (320, 200)
    thumbnail_ends = data.index(b"\xff\xd9")
    for left in (len(data) * 9 // 10, thumbnail_ends + 2, thumbnail_ends + 300, thumbnail_ends - 10):
        assert refused(data[:left]) == "truncated"


@pytest.mark.parametrize("policy", [POLICY, SMALL])
@pytest.mark.parametrize("before_bytes", [0, 64_900, 200_000])
def test_arithmetic_coding_is_encoded_anew(before_bytes: int, policy: Photos) -> None:
    """A JPEG that few readers open becomes one that all open, also where it is larger than one read of the decoder."""
    data = ARITHMETIC.read_bytes()
    comments = [min(60_000, before_bytes - at) for at in range(0, before_bytes, 60_000)]
    whole = data[:2] + b"".join(b"\xff\xfe" + struct.pack(">H", n + 2) + bytes(n) for n in comments) + data[2:]
    taken = take(whole, policy)
    assert taken.size_px == (96, 72)
    assert b"\xff\xc0\0\x11\x08" in taken.data
    same = decoded(take(data, policy).data)
    assert max(ImageStat.Stat(ImageChops.difference(decoded(taken.data), same)).rms) == 0


def test_damage_in_the_middle_is_not_called_truncated() -> None:
    """A file with its end, but with a broken table, is unreadable and not truncated."""
    data = bytearray(encoded(picture()))
    data[data.index(b"\xff\xc4") + 4 : data.index(b"\xff\xc4") + 20] = b"\xff" * 16
    assert refused(bytes(data)) == "unreadable"


def test_bytes_are_bounded() -> None:
    """One byte more than the profile accepts is refused before it is opened."""
    data = encoded(picture())
    assert take(data, Photos(max_bytes=len(data))).data == data
    assert refused(data, Photos(max_bytes=len(data) - 1)) == "too-many-bytes"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_pixels_are_bounded_before_the_decode(kind: str) -> None:
    """Too many pixels are refused from the header: a file that is cut after it is still called a pixel bomb."""
    data = encoded(picture(), kind)
    assert take(data, Photos(max_pixels=320 * 200)).size_px == (320, 200)
    assert refused(data, Photos(max_pixels=320 * 200 - 1)) == "pixel-bomb"
    cut = data if kind == "WEBP" else data[: data.index(b"\xff\xda") + 20] if kind == "JPEG" else data[:200]
    assert refused(cut, Photos(max_pixels=320 * 200 - 1)) == "pixel-bomb"


def test_a_bitmap_header_that_claims_the_world_is_a_bomb() -> None:
    """A hundred bytes that claim 60,000 x 60,000 pixels take no memory."""
    data = bytearray(encoded(Image.new("RGB", (4, 4)), "BMP"))
    data[18:26] = struct.pack("<ii", 60_000, 60_000)
    assert refused(bytes(data)) == "pixel-bomb"


def test_a_webp_canvas_that_claims_the_world_is_a_bomb() -> None:
    """The same for an animated WebP, whose reader would make room for the canvas as it opens."""
    first, second = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), (200, 0, 0))
    data = bytearray(encoded(first, "WEBP", save_all=True, append_images=[second]))
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = (16_382).to_bytes(3, "little") * 2
    assert refused(bytes(data)) == "pixel-bomb"


@pytest.mark.parametrize("progressive", [False, True])
def test_more_pixels_than_bits_for_their_blocks_is_a_bomb(progressive: bool) -> None:
    """A thousand bytes that claim 80 megapixels, within the profile's bound, would take a second and 200 MB."""
    data = bytearray(encoded(picture(80, 60), progressive=progressive))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 8000, 9999)
    assert refused(bytes(data)) == "pixel-bomb"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_blank_photo_is_no_bomb(progressive: bool) -> None:
    """One colour at 12 megapixels, as small as JPEG can make it, is a photo all the same."""
    data = encoded(Image.new("RGB", (4000, 3000), (90, 90, 90)), quality=1, progressive=progressive, optimize=True)
    assert take(data, POLICY).size_px == (4000, 3000)


def test_scans_are_bounded() -> None:
    """A progressive JPEG with a scan repeated a hundred times would cost seconds: it is refused unread."""
    data = encoded(picture(), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert refused(data[:-2] + last * 2 * MAX_SCANS + data[-2:]) == "scan-bomb"


@pytest.mark.parametrize("order", ["<", ">"])
def test_focal_length_from_the_35_mm_equivalent(order: str) -> None:
    """26 mm on 35 mm film: 26 times the diagonal over 43.27 mm, in either byte order."""
    data = encoded(picture(400, 300), exif=exif(order, inner=((camera.FOCAL_LENGTH_35MM, 3, 26),)))
    assert take(data, POLICY).focal_px == pytest.approx(26 * 500 / 43.2666, rel=1e-4)


@pytest.mark.parametrize(("unit", "density"), [(None, 25.4 * 100), (2, 25.4 * 100), (3, 10 * 100), (4, 100)])
def test_focal_length_from_the_sensor(unit: int | None, density: float) -> None:
    """4 mm at 100 pixels a mm is 400 px, in each unit; half of that for a photo that was halved after the shot."""
    inner = [(camera.FOCAL_LENGTH_MM, 5, 4.0), (camera.FOCAL_PLANE_X_RESOLUTION, 5, density)]
    inner += [(camera.FOCAL_PLANE_UNIT, 3, unit)] if unit else []
    assert take(encoded(picture(), exif=exif("<", inner=(*inner,))), POLICY).focal_px == pytest.approx(400, rel=1e-3)
    halved = (*inner, (camera.PIXEL_X_DIMENSION, 4, 640))
    assert take(encoded(picture(), exif=exif("<", inner=halved)), POLICY).focal_px == pytest.approx(200, rel=1e-3)


def test_an_impossible_focal_length_is_unknown() -> None:
    """A tag that would make a lens of a 100-fold width says nothing."""
    data = encoded(picture(), exif=exif("<", inner=((camera.FOCAL_LENGTH_35MM, 3, 60_000),)))
    assert take(data, POLICY).focal_px == 0.0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_malformed_exif_does_not_cost_the_photo(data: st.DataObject) -> None:
    """Whatever stands in the EXIF, the photo is taken, and without a warning."""
    whole = exif("<", (camera.ORIENTATION, 3, 1), inner=((camera.FOCAL_LENGTH_MM, 5, 4.0), (0xA20E, 5, 2000)))
    block = bytearray(data.draw(st.one_of(st.binary(max_size=200).map(lambda b: b"Exif\0\0" + b), st.just(whole))))
    for at in data.draw(st.lists(st.integers(6, max(6, len(block) - 1)), max_size=6)):
        if at < len(block):
            block[at] = data.draw(st.integers(0, 255))
    photo = encoded(Image.new("RGB", (40, 20)), exif=bytes(block))
    assert sorted(take(photo, POLICY).size_px) == [20, 40]


SEEDS = [
    encoded(picture(80, 60)),
    encoded(picture(80, 60), progressive=True, exif=exif("<", (camera.ORIENTATION, 3, 6))),
    encoded(picture(80, 60, "L"), restart_marker_rows=1),
    encoded(picture(80, 60, "CMYK"), subsampling=0),
]


def check_mutant(data: bytes) -> None:
    """Taken or refused, nothing else; and what is taken, a worker can decode."""
    for policy in (POLICY, SMALL):
        try:
            taken = take(data, policy)
        except PhotoError as error:
            assert error.reason  # noqa: PT017 - both outcomes are right
        else:
            decoded(taken.data).load()


@pytest.mark.parametrize("seed", SEEDS)
def test_truncation_at_every_marker(seed: bytes) -> None:
    """A JPEG cut before, in and behind each of its markers is refused, the last one included."""
    for marker in re.finditer(rb"\xff[\x01-\xfe]", seed):
        for left in (marker.start(), marker.start() + 1, marker.end(), marker.end() + 1):
            if left < len(seed):
                assert refused(seed[:left]) in ("truncated", "not-an-image", "empty")


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), min_size=1, max_size=8))
def test_bit_flips_end_in_a_photo_or_a_photo_error(seed: bytes, flips: list[tuple[int, int]]) -> None:
    """Flipped bits give a photo that a worker can decode, or a PhotoError."""
    data = bytearray(seed)
    for at, bit in flips:
        data[at % len(data)] ^= 1 << bit
    check_mutant(bytes(data))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 1 << 16), st.integers(0, 300), st.binary(max_size=40))
def test_spliced_bytes_end_in_a_photo_or_a_photo_error(seed: bytes, at: int, gone: int, added: bytes) -> None:
    """Bytes taken out and others put in give a photo that a worker can decode, or a PhotoError."""
    at %= len(seed)
    check_mutant(seed[:at] + added + seed[at + gone :])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [encoded(picture(80, 60), "PNG"), encoded(picture(80, 60), "WEBP"), encoded(picture(80, 60), "BMP")]
    ),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_other_formats_end_in_a_photo_or_a_photo_error(seed: bytes, changes: list[tuple[int, int]]) -> None:
    """The other formats, with bytes changed, give a JPEG or a PhotoError as well."""
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    check_mutant(bytes(data))


@pytest.mark.skipif(not FULLSIZE.is_dir(), reason=f"no photos at {os.path.relpath(FULLSIZE)}")
def test_real_photos_of_full_size() -> None:
    """Originals from cameras end at the bound, and a focal length is found where their EXIF has one."""
    found = {}
    for path in sorted(FULLSIZE.glob("*.jpg")):
        taken = take(path.read_bytes(), POLICY)
        assert max(decoded(taken.data).size) == 960
        found[path.name] = taken.focal_px
    assert found["indian-obstacles-0062-full.jpg"] == pytest.approx(97 * (4608**2 + 3456**2) ** 0.5 / 43.2666, rel=1e-4)
    assert sum(focal > 0 for focal in found.values()) == 1
