"""Takes a photo in: refuses what cannot be judged, shrinks once what is too large, leaves the rest as it came.

Every tier reads the copy that is made here, and reads JPEG: one format, one decoder, one set of faults. What intake
accepts, a worker can decode; the fuzz test holds that.
"""

import hashlib
import io
import re
import threading
import warnings
from typing import Literal

from msgspec import Struct
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from configs.errors import PhotoError
from configs.profile import Photos
from producers import camera

Reason = Literal[
    "empty",
    "too-many-bytes",
    "not-an-image",
    "unsupported-format",
    "pixel-bomb",
    "scan-bomb",
    "truncated",
    "unreadable",
]

#: Each scan of a progressive JPEG passes over all pixels: half a megabyte of empty scans took 7 s at 90 megapixels.
#: Encoders write about ten.
MAX_SCANS = 50
#: A Huffman code has a bit at least, and so has each block of 64 pixels: a JPEG of fewer bytes claims too much.
MAX_PIXELS_A_BYTE = 64 * 8
#: Behind what was transparent, as a viewer shows it.
BACKGROUND = (255, 255, 255)

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Modes that resize() filters as they are. The others are converted first: a palette's indices have no mean.
_FILTERED = frozenset({"L", "LA", "RGB", "RGBA", "CMYK"})
#: Known by their first bytes and refused by name. No street camera writes TIFF or GIF; HEIC needs another decoder.
_OTHERS = (
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF or raw"),
    (0, b"MM\0*", "TIFF or raw"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
)


#: A JPEG's markers with a length: FF, repeated at will, and a byte that is not 0 (then FF is data) nor a restart's.
_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])")
_SCAN, _END = 0xDA, 0xD9
#: The head of a frame with arithmetic coding, sequential or progressive. Taken for one by chance, a photo is only
#: encoded anew.
_ARITHMETIC = re.compile(rb"\xff[\xc9\xca]\x00[\x0b\x11\x14]\x08")
#: The whole closing chunk of a PNG, length and check sum included: always the same.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
#: No BMP has a shorter header.
_BMP_HEADER_BYTES = 26

#: catch_warnings() changes the process, and producers take photos in on several threads.
_warnings_lock = threading.Lock()


class Taken(Struct, frozen=True):
    """A photo that was accepted."""

    #: What to store: JPEG, RGB or grey, upright, longest side at most Photos.max_side_px.
    data: bytes
    #: Of the bytes as they arrived, 32 bytes.
    sha256: bytes
    #: Width and height as it arrived, EXIF orientation applied.
    size_px: tuple[int, int]
    #: Focal length in pixels of the photo as it arrived; 0.0 when unknown. Formula: producers.camera.focal_px.
    focal_px: float


class _Jpeg(JpegImageFile):
    """A JPEG of which only the pixels are read.

    Opened by class and not by Image.open(), as the others are: that would take a phone's two-picture file (MPO) for
    another format, and hold its own bound of pixels, process-wide, against the profile's.
    """

    def _read_dpi_from_exif(self) -> None:
        """Pillow would parse the EXIF here for a resolution that nobody asks for, and warn where it is malformed."""


def take(photo: bytes, policy: Photos) -> Taken:
    """Checks a photo by decoding it whole, and makes the copy that the fleet will read.

    A JPEG that is small enough and upright stays as it is, byte for byte. Anything else, one with malformed EXIF or
    arithmetic coding (few can read it) included, becomes a JPEG of ``policy.jpeg_quality``: shrunk to
    ``policy.max_side_px``, turned as its EXIF says, on white where it was transparent, colour profile and metadata
    dropped (no tier reads them).

    Args:
        photo: The bytes as they arrived; their format is told by the first of them, never by a name.
        policy: What the profile accepts.

    Raises:
        PhotoError: the photo cannot be judged; its reason is one of Reason. Nothing else is raised.
    """
    if not photo:
        raise _refusal("empty", "0 bytes")
    if len(photo) > policy.max_bytes:
        raise _refusal("too-many-bytes", f"{len(photo)} bytes; the profile accepts {policy.max_bytes}")
    opener = _opener(photo)
    try:
        return _take(photo, opener, policy)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        # Pillow's WebP reader allocates its canvas as it opens, so it checks by itself.
        raise _refusal("pixel-bomb", str(error)) from error
    except MemoryError as error:
        raise _refusal("unreadable", "decoding it needs more memory than this process may have") from error
    # Pillow raises OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, ZeroDivisionError and more,
    # and no list of them is kept: one photo must not end the stream.
    except Exception as error:
        reason: Reason = "truncated" if _ends_early(photo, opener) else "unreadable"
        raise _refusal(reason, f"{type(error).__name__}: {error}"[:200]) from error


def _refusal(reason: Reason, detail: str) -> PhotoError:
    return PhotoError(reason, detail)


def _truncated(photo: bytes) -> PhotoError:
    return _refusal("truncated", f"{len(photo)} bytes, without the mark that ends it")


def _opener(photo: bytes) -> type[ImageFile.ImageFile]:
    if photo.startswith(b"\xff\xd8\xff"):
        return _Jpeg
    if photo.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if photo.startswith(b"RIFF") and photo[8:12] == b"WEBP":
        return WebPImageFile
    if photo.startswith(b"BM"):
        return BmpImageFile
    for offset, magic, name in _OTHERS:
        if photo.startswith(magic, offset):
            raise _refusal("unsupported-format", f"{name}; accepted are JPEG, PNG, WebP and BMP")
    raise _refusal("not-an-image", f"starts with {photo[:16]!r}")


def _ends_early(photo: bytes, opener: type[ImageFile.ImageFile]) -> bool:
    """Whether it lacks its end, which tells an upload that broke off from a damaged file.

    The end is the format's own mark, not the last pixel: whether that is whole, no decoder says. What follows the end
    (a second picture, a film, an archive) is not the photo's.
    """
    if opener is _Jpeg:
        return not _survey(photo)[1]
    if opener is PngImageFile:
        return photo.find(_PNG_END, max(0, photo.find(b"IDAT"))) < 0
    # WebP and BMP say their length near the start.
    if opener is WebPImageFile:
        return len(photo) < int.from_bytes(photo[4:8], "little") + 8
    return len(photo) < max(_BMP_HEADER_BYTES, int.from_bytes(photo[2:6], "little"))


def _survey(photo: bytes) -> tuple[int, bool]:
    """A JPEG's scans, and whether its end is there. Those of a thumbnail inside, or of a tail, are not its own."""
    scans, at = 0, 2
    while marker := _MARKER.search(photo, at):
        at, kind = marker.end(), marker[1][0]
        if kind == _END:
            return scans, True
        scans += kind == _SCAN
        # Over the segment, by its length. What follows the head of a scan holds no marker until the scan is over.
        at += int.from_bytes(photo[at : at + 2], "big")
    return scans, False


def _take(photo: bytes, opener: type[ImageFile.ImageFile], policy: Photos) -> Taken:
    image = opener(io.BytesIO(photo))
    width_px, height_px = image.size
    # From the header, before a pixel is decoded.
    if width_px * height_px > policy.max_pixels:
        raise _refusal("pixel-bomb", f"{width_px} x {height_px} pixels; the profile accepts {policy.max_pixels}")
    tags = camera.read_tags(image.info.get("exif", b""))
    orientation = camera.orientation(tags)
    turn = _TURN.get(orientation)
    large = max(width_px, height_px) > policy.max_side_px
    arithmetic = False
    if isinstance(image, _Jpeg):
        arithmetic = _ARITHMETIC.search(photo) is not None
        if not arithmetic and width_px * height_px > MAX_PIXELS_A_BYTE * len(photo):
            raise _refusal("pixel-bomb", f"{width_px} x {height_px} pixels in {len(photo)} bytes")
        _check_scans(photo)
        # The arithmetic decoder cannot wait for more, it wants everything at once.
        image.decodermaxblock = len(photo)
    # Its decoder may be content without, and so may that of JPEG.
    elif isinstance(image, PngImageFile) and _ends_early(photo, opener):
        raise _truncated(photo)
    data = photo
    if (
        isinstance(image, _Jpeg)
        and not (large or arithmetic)
        and turn is None
        and image.mode in ("RGB", "L")
        and _readable(image, photo)
    ):
        # The whole stream is read and every code in it resolved, but only an eighth of the pixels is computed. What
        # can fail in a decoder fails here too.
        image.draft(None, (1, 1))
        image.load()
    else:
        data = _upright_jpeg(image, turn, policy)
    # 5 to 8 lie on their side.
    size_px = (height_px, width_px) if orientation >= 5 else (width_px, height_px)
    return Taken(data, hashlib.sha256(photo).digest(), size_px, camera.focal_px(tags, width_px, height_px))


def _readable(image: _Jpeg, photo: bytes) -> bool:
    """Whether any reader opens these bytes: malformed EXIF, that we pass over, is an error to some, Pillow included."""
    if not image.info.keys() & {"exif", "mp"}:
        return True
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            Image.open(io.BytesIO(photo), formats=["JPEG"])
        except Exception:  # noqa: BLE001 - see take(); here it costs the photo its bytes, not its place
            return False
    return True


def _check_scans(photo: bytes) -> None:
    scans, whole = _survey(photo)
    if scans > MAX_SCANS:
        raise _refusal("scan-bomb", f"{scans} scans; an encoder writes about ten, {MAX_SCANS} are accepted")
    if not whole:
        raise _truncated(photo)


def _upright_jpeg(image: Image.Image, turn: Image.Transpose | None, policy: Photos) -> bytes:
    width_px, height_px = image.size
    scale = min(1.0, policy.max_side_px / max(width_px, height_px))
    target = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    box = None
    if scale < 1 and isinstance(image, _Jpeg):
        # DCT scaling by 2, 4 or 8, never below the target. To ask for twice the target and filter more takes up to
        # twice as long and changes little: 39-48 dB between the two, the noise that the JPEG encoder adds anyway.
        drafted = image.draft(None, target)
        box = drafted[1] if drafted else None
    image.load()
    if image.mode not in _FILTERED or "transparency" in image.info:
        image = _rgb(image)
    if scale < 1:
        image = image.resize(target, Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)
    image = _rgb(image)
    if turn is not None:
        image = image.transpose(turn)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=policy.jpeg_quality, exif=b"", icc_profile=None)
    return buffer.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    """``image`` as RGB: 16-bit grey by its high byte (a plain conversion clips it), transparency on white."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, BACKGROUND)
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")
