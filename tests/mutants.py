"""Bad photos, made by mutation: a few small pictures in many forms, each cut, flipped, spliced and dressed as another.

The same seed gives the same files. What must become of each is said with it.
"""

import io
import random
import re
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from msgspec import Struct
from PIL import Image

from producers.scenes import DEMO_SEEDS, render

#: scored: it is a photo. cut: refused as what lacks its end. refused: whatever the reason. either: a matter of luck.
Fate = Literal["scored", "cut", "refused", "either"]

ARITHMETIC = Path(__file__).parent / "data" / "arithmetic.jpg"
SIDE_PX = (96, 72)
FLIPS_EACH = 40
SPLICES_EACH = 12


class Mutant(Struct, frozen=True):
    """One file."""

    kind: str
    data: bytes
    suffix: str
    fate: Fate


def mutants(seed: int = 1) -> Iterator[Mutant]:
    """All of them."""
    dice = random.Random(seed)
    photos = {**jpegs(), **others()}
    for name, data in photos.items():
        yield Mutant(f"whole {name}", data, ".jpg" if name in jpegs() else f".{name.split()[0]}", "scored")
    for name, data in jpegs().items():
        yield from (Mutant(f"cut {name}", data[:at], ".jpg", "cut") for at in marker_cuts(data))
        yield from (Mutant(f"lie {name}", lie, ".jpg", "either") for lie in segment_lies(data))
    for name, data in others().items():
        yield from (Mutant(f"cut {name}", data[:at], f".{name.split()[0]}", "cut") for at in chunk_cuts(data))
    for name, data in photos.items():
        for _ in range(FLIPS_EACH):
            yield Mutant(f"flipped {name}", flipped(data, dice), ".jpg", "either")
        for _ in range(SPLICES_EACH):
            yield Mutant(f"spliced {name}", spliced(data, dice), ".jpg", "either")
    yield from dressed(dice)
    yield from oriented(dice)
    yield from sizes()
    yield from bombs()
    yield from strangers(dice)


@cache
def scene() -> Image.Image:
    """One of the project's own scenes, small."""
    return render(DEMO_SEEDS[0])[0].resize(SIDE_PX)


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def jpegs() -> dict[str, bytes]:
    """JPEG in its forms."""
    photo, grey = scene(), scene().convert("L")
    ink = saved(photo.convert("CMYK"))
    adobe = ink.index(b"Adobe")
    return {
        "baseline": saved(photo),
        "progressive": saved(photo, progressive=True),
        "grey": saved(grey),
        "restarts": saved(photo, restart_marker_rows=1),
        "4:4:4": saved(photo, subsampling=0, quality=98),
        "cmyk": ink,
        # The transform that the Adobe segment names: 2 is YCCK.
        "ycck": ink[: adobe + 11] + b"\x02" + ink[adobe + 12 :],
        "exif": saved(photo, exif=turned(6) + saved(photo.resize((16, 12)))),
        "two pictures": saved(photo, "MPO", save_all=True, append_images=[grey.convert("RGB")]),
        "arithmetic": ARITHMETIC.read_bytes(),
    }


@cache
def others() -> dict[str, bytes]:
    """The other accepted formats in their forms."""
    photo = scene()
    clear = photo.convert("RGBA")
    clear.putalpha(photo.convert("L"))
    deep = Image.frombytes("I;16", SIDE_PX, random.Random(3).randbytes(2 * SIDE_PX[0] * SIDE_PX[1]))
    frames = [photo.rotate(90 * i) for i in range(1, 3)]
    return {
        **{f"png {mode}": saved(photo.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB")},
        "png RGBA": saved(clear, "PNG"),
        "png 16 bit": saved(deep, "PNG"),
        "png animated": saved(photo, "PNG", save_all=True, append_images=frames),
        "webp": saved(photo, "WEBP"),
        "webp lossless": saved(clear, "WEBP", lossless=True),
        "webp animated": saved(photo, "WEBP", save_all=True, append_images=frames),
        **{f"bmp {mode}": saved(photo.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB")},
    }


def segments(jpeg: bytes) -> list[tuple[int, int]]:
    """Start and length of each segment before the first scan, its marker included."""
    found, at = [], 2
    while jpeg[at + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((at, length))
        at += length
    return found


def ends_at(jpeg: bytes) -> int:
    """Where the picture ends; behind it the second picture of a phone's file may follow."""
    at = sum(segments(jpeg)[-1])
    # Between the first scan and the end FF is followed by 00, a restart, or another scan's tables.
    return jpeg.index(b"\xff\xd9", at) + 2


def marker_cuts(jpeg: bytes) -> list[int]:
    """Before, in and behind every marker, and in the middle of what follows each; all before the picture's end."""
    end = ends_at(jpeg)
    markers = [match.start() for match in re.finditer(rb"\xff[\x01-\xfe]", jpeg[:end])]
    middles = [(a + b) // 2 for a, b in zip(markers, [*markers[1:], end], strict=True)]
    return sorted({at for m in markers for at in (m, m + 1, m + 2, m + 4)}.union(middles) & set(range(end)))


def segment_lies(jpeg: bytes) -> Iterator[bytes]:
    """Each segment with a length that is not its own, without it, and twice."""
    for at, length in segments(jpeg):
        for lie in (0, 1, 2, length // 2, 0x7FFF, 0xFFFF):
            yield jpeg[: at + 2] + lie.to_bytes(2, "big") + jpeg[at + 4 :]
        yield jpeg[:at] + jpeg[at + length :]
        yield jpeg[: at + length] + jpeg[at:]
        for marker in range(0xC0, 0xD0):
            if jpeg[at + 1] in (0xC0, 0xC2, 0xC9):
                yield jpeg[: at + 1] + bytes([marker]) + jpeg[at + 2 :]


def chunk_cuts(data: bytes) -> list[int]:
    """Before, in and behind the head of each chunk of a PNG or WebP, in its middle, before its check sum; and a BMP."""
    if data.startswith(b"BM"):
        return [*range(2, 60, 3), *range(60, len(data) - 1, len(data) // 12), len(data) - 1]
    cuts = set(range(4, 12))
    for at, length, behind in png_chunks(data) if data.startswith(b"\x89") else webp_chunks(data):
        cuts |= {at, at + 3, at + 8, at + 9, at + 8 + length // 2, at + 8 + length, at + 8 + length + behind}
    return sorted(at for at in cuts if at < len(data))


def png_chunks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, length of what it holds, bytes behind that."""
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield at, length, 4
        at += 12 + length


def webp_chunks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The same of a WebP."""
    at = 12
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield at, length, length % 2
        at += 8 + length + length % 2


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, and its end."""
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def flipped(data: bytes, dice: random.Random) -> bytes:
    """With one to eight bits flipped, often near the start, where the tables are."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        out[dice.randrange(dice.choice((len(out), min(len(out), 700))))] ^= 1 << dice.randrange(8)
    return bytes(out)


def spliced(data: bytes, dice: random.Random) -> bytes:
    """With bytes cut out, put in, zeroed or repeated."""
    at, n = dice.randrange(len(data)), dice.randint(1, 200)
    added = dice.choice((b"", dice.randbytes(n), bytes(n), data[at : at + n] * 2))
    return data[:at] + added + data[at + dice.choice((0, n)) :]


def dressed(dice: random.Random) -> Iterator[Mutant]:
    """Under another's name, behind another's head, with another's tail, and pages of HTML that were saved as photos."""
    page = b"<!DOCTYPE html><html><head><title>404</title></head><body>" + b"Not found. " * 50 + b"</body></html>"
    archive = b"PK\x03\x04" + dice.randbytes(300) + b"PK\x05\x06" + bytes(18)
    for name, data in {**jpegs(), **others()}.items():
        for suffix in (".png", ".bmp", ".gif"):
            yield Mutant(f"{name} named {suffix}", data, suffix, "scored")
        for tail in (page, archive, bytes(500), dice.randbytes(500), b"\xff\xda\xff\xda" * 9, b"\xff\xd9", b"\n"):
            yield Mutant(f"{name} and a tail", data + tail, ".jpg", "scored")
        # A tail that broke off is not the photo's.
        yield Mutant(f"{name} and a cut tail", data + archive[:100], ".jpg", "scored")
        for head in (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", page, archive, b"\r\n", b"\xef\xbb\xbf", b"GIF89a", bytes(10)):
            yield Mutant(f"{name} behind a head", head + data, ".jpg", "refused")
    for suffix in (".jpg", ".png", ".webp"):
        yield Mutant("page", page, suffix, "refused")
        yield Mutant("archive", archive, suffix, "refused")
        yield Mutant("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", suffix, "refused")
        yield Mutant(
            "pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", suffix, "refused"
        )


def turned(orientation: int, order: str = "<") -> bytes:
    """An EXIF block of one tag."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1)
    return b"Exif\0\0" + head + struct.pack(order + "HHIHHI", 0x0112, 3, 1, orientation, 0, 0)


def oriented(dice: random.Random) -> Iterator[Mutant]:
    """Turned as cameras turn, and with EXIF that is none."""
    for orientation in (*range(10), 255, 65535):
        for order in "<>":
            yield Mutant("turned", saved(scene(), exif=turned(orientation, order)), ".jpg", "scored")
    whole = turned(3) + dice.randbytes(40)
    yield Mutant("malformed EXIF", saved(scene(), exif=b"Exif\0\0"), ".jpg", "scored")
    for _ in range(60):
        block = bytearray(whole[: dice.randint(6, len(whole))])
        for _ in range(dice.randint(0, 5)):
            block[dice.randrange(len(block))] = dice.choice((0, 1, 255, dice.randrange(256)))
        yield Mutant("malformed EXIF", saved(scene(), exif=bytes(block)), ".jpg", "scored")


def sizes() -> Iterator[Mutant]:
    """Headers that name no pixels, or more than there are."""
    empty = b"".join([b"\xff\xd8", b"\xff\xd9"])
    for data in (b"", b"\0", b"\xff", b"\xff\xd8", empty, bytes(100), bytes(100_000)):
        yield Mutant("nothing", data, ".jpg", "refused")
    for wide, high in ((0, 72), (96, 0), (0, 0), (65_535, 65_535), (65_535, 72), (96, 65_535), (65_535, 1500)):
        for name in ("baseline", "progressive", "arithmetic", "grey"):
            data = jpegs()[name]
            at = next(at for at, _ in segments(data) if data[at + 1] in (0xC0, 0xC2, 0xC9))
            size = struct.pack(">HH", high, wide)
            yield Mutant(f"{name} of another size", data[: at + 5] + size + data[at + 9 :], ".jpg", "either")
        depth = struct.pack(">BBBBB", 8, 2, 0, 0, 0)
        few = zlib.compress(bytes(3 * 96 * 72))
        data = png_with((b"IHDR", struct.pack(">II", wide, high) + depth), (b"IDAT", few))
        yield Mutant("png of another size", data, ".png", "refused")
        bitmap = bytearray(others()["bmp RGB"])
        bitmap[18:26] = struct.pack("<ii", wide, high)
        yield Mutant("bmp of another size", bytes(bitmap), ".bmp", "refused")


def bombs() -> Iterator[Mutant]:
    """A few bytes that would take much memory or time."""
    for wide, high, depth, colour in ((30_000, 30_000, 1, 0), (65_535, 65_535, 8, 6), (2**31 - 1, 1, 8, 0)):
        head = (b"IHDR", struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0))
        yield Mutant("png bomb", png_with(head, (b"IDAT", zlib.compress(bytes(100_000), 9))), ".png", "refused")
    yield Mutant("flat png of 49 megapixels", large_and_flat(), ".png", "scored")
    thick = zlib.compress(bytes(20_000_000), 9)
    picture = others()["png RGB"]
    after = 33
    for chunk_name, held in (
        (b"iCCP", b"p\0\0" + thick),
        (b"zTXt", b"k\0\0" + thick),
        (b"iTXt", b"k\0\1\0\0\0" + thick),
    ):
        chunk = png_with((chunk_name, held))[8:-12]
        yield Mutant("png with a thick chunk", picture[:after] + chunk + picture[after:], ".png", "either")
    for name in ("progressive", "baseline"):
        data = jpegs()[name]
        end = ends_at(data)
        scan = data[data.rindex(b"\xff\xda", 0, end) : end - 2]
        for times in (30, 60, 5000):
            yield Mutant("scans", data[: end - 2] + scan * times + data[end - 2 :], ".jpg", "either")
        at = next(at for at, _ in segments(data) if data[at + 1] in (0xC0, 0xC2))
        for wide, high in ((9999, 9999), (16_000, 6200)):
            huge = data[: at + 5] + struct.pack(">HH", high, wide) + data[at + 9 :]
            yield Mutant("huge jpeg of few bytes", huge, ".jpg", "refused")
            more = huge[: end - 2] + scan * 35 + huge[end - 2 :]
            yield Mutant("huge jpeg of many scans", more, ".jpg", "refused")


@cache
def large_and_flat() -> bytes:
    """All its pixels, 7000 x 7000, in 50 kB: a photo."""
    rows = zlib.compressobj(9)
    flat = b"".join([*(rows.compress(bytes(1 + 7000)) for _ in range(7000)), rows.flush()])
    return png_with((b"IHDR", struct.pack(">IIBBBBB", 7000, 7000, 8, 0, 0, 0, 0)), (b"IDAT", flat))


def strangers(dice: random.Random) -> Iterator[Mutant]:
    """Other formats, and noise behind the first bytes of ours."""
    photo = scene()
    for kind in ("GIF", "TIFF", "ICO", "PPM", "TGA", "PCX"):
        yield Mutant(f"whole {kind}", saved(photo, kind), ".jpg", "refused")
    moving = saved(photo.convert("P"), "GIF", save_all=True, append_images=[photo.rotate(90).convert("P")])
    yield Mutant("animated GIF", moving, ".gif", "refused")
    magics = (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xdb", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\0\0WEBPVP8 ", b"BM")
    for magic in magics:
        for length in (0, 1, 10, 100, 1000, 20_000):
            yield Mutant("noise", magic + dice.randbytes(length), ".jpg", "refused")
