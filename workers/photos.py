"""From stored bytes to pixels."""

import io

from configs.errors import PhotoError
from PIL import Image


def open_photo(data: bytes, least_px: int) -> Image.Image:
    """Decodes a stored photo.

    Args:
        data: a JPEG, as intake stores it.
        least_px: the caller needs no side shorter than this; a much larger JPEG is decoded at a half, quarter or eighth (DCT scaling).

    Returns:
        RGB, decoded.

    Raises:
        PhotoError: it cannot be decoded.
    """
    try:
        photo = Image.open(io.BytesIO(data))
        photo.draft("RGB", (least_px, least_px))
        return photo.convert("RGB")
    except Exception as error:
        # Pillow raises OSError, SyntaxError, ValueError, struct.error and more, by format: whichever it is, this photo cannot be judged.
        raise PhotoError("undecodable", f"{type(error).__name__}: {error}") from None
