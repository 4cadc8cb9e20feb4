"""What a photo's EXIF says of the camera: how it was held, and its focal length.

Read here and not by Pillow, whose reader warns on stderr or raises on malformed EXIF, by more exception types than its
documentation names. Six numbers of two directories are wanted; every read is bounds-checked, so malformed EXIF simply
says nothing. Layout: EXIF 2.32 (CIPA DC-008), TIFF 6.0 section 2.
"""

import math
import struct

ORIENTATION = 0x0112
EXIF_DIRECTORY = 0x8769
FOCAL_LENGTH_MM = 0x920A
PIXEL_X_DIMENSION = 0xA002
FOCAL_PLANE_X_RESOLUTION = 0xA20E
FOCAL_PLANE_UNIT = 0xA210
FOCAL_LENGTH_35MM = 0xA405

_WANTED = frozenset(
    {
        ORIENTATION,
        EXIF_DIRECTORY,
        FOCAL_LENGTH_MM,
        PIXEL_X_DIMENSION,
        FOCAL_PLANE_X_RESOLUTION,
        FOCAL_PLANE_UNIT,
        FOCAL_LENGTH_35MM,
    }
)
#: Millimetres by FocalPlaneResolutionUnit: inch (also when it is missing), centimetre, millimetre, micrometre.
_UNIT_MM = {2.0: 25.4, 3.0: 10.0, 4.0: 1.0, 5.0: 0.001}
#: Diagonal of a 36 x 24 mm frame.
_FRAME_DIAGONAL_MM = math.hypot(36, 24)
#: A focal length outside these multiples of the longest side (a 160 degree fisheye, a 12 degree telephoto times two) is
#: a wrong tag, not a lens.
_LEAST, _MOST = 0.08, 10.0


def read_tags(exif: bytes) -> dict[int, float]:
    """The wanted tags of an EXIF block, its "Exif" prefix optional; those that are malformed are left out."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return {}
    tags = _directory(tiff, order, struct.unpack_from(order + "I", tiff, 4)[0])
    # One level only: a directory that points to itself is read once.
    return _directory(tiff, order, int(tags.get(EXIF_DIRECTORY, len(tiff)))) | tags


def _directory(tiff: bytes, order: str, offset: int) -> dict[int, float]:
    tags: dict[int, float] = {}
    if offset + 2 > len(tiff):
        return tags
    (count,) = struct.unpack_from(order + "H", tiff, offset)
    first = offset + 2
    for at in range(first, min(first + 12 * count, len(tiff) - 11), 12):
        tag, kind, _values, pointer = struct.unpack_from(order + "HHII", tiff, at)
        if tag not in _WANTED:
            continue
        if kind == 3:  # SHORT, in the first half of the value field
            tags[tag] = float(struct.unpack_from(order + "H", tiff, at + 8)[0])
        elif kind == 4:  # LONG
            tags[tag] = float(pointer)
        elif kind == 5 and pointer + 8 <= len(tiff):  # RATIONAL, behind a pointer
            numerator, denominator = struct.unpack_from(order + "II", tiff, pointer)
            if denominator:
                tags[tag] = numerator / denominator
    return tags


def orientation(tags: dict[int, float]) -> int:
    """1 to 8 as in EXIF; 1 (upright) when it is missing or out of range."""
    value = tags.get(ORIENTATION, 1.0)
    return int(value) if value in range(1, 9) else 1


def focal_px(tags: dict[int, float], width_px: int, height_px: int) -> float:
    """The focal length in pixels of the photo as it arrived; 0.0 when it is unknown.

    From FocalLengthIn35mmFilm, f35: ``f35 * sqrt(w^2 + h^2) / 43.27``: CIPA DCG-001 defines it by equal diagonals.
    Otherwise from FocalLength, f: ``f * FocalPlaneXResolution / (mm in its unit) * w / PixelXDimension``; the last
    factor undoes a resize after the shot. Both take the photo for uncropped and its pixels for square.

    Args:
        tags: As read_tags returns them.
        width_px: Stored width, before the orientation is applied: FocalPlaneXResolution counts along it.
        height_px: Stored height.
    """
    focal = 0.0
    if film_mm := tags.get(FOCAL_LENGTH_35MM):
        focal = film_mm * math.hypot(width_px, height_px) / _FRAME_DIAGONAL_MM
    elif (length_mm := tags.get(FOCAL_LENGTH_MM)) and (density := tags.get(FOCAL_PLANE_X_RESOLUTION)):
        unit_mm = _UNIT_MM.get(tags.get(FOCAL_PLANE_UNIT, 2.0), 0.0)
        shot_width_px = tags.get(PIXEL_X_DIMENSION) or width_px
        focal = length_mm * density / unit_mm * width_px / shot_width_px if unit_mm else 0.0
    longest_px = max(width_px, height_px)
    return focal if _LEAST * longest_px <= focal <= _MOST * longest_px else 0.0
