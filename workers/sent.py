"""A photo as it travels to a served model: JPEG in base64, as it is stored unless it must be shrunk."""

import base64
import io

from PIL import Image

from configs.errors import PhotoError
from workers.photos import open_photo

JPEG_QUALITY = 90


def sent(photo: Image.Image, most_px: int) -> bytes:
    """A decoded photo, at most ``most_px`` on its longest side; 0: as it is."""
    if most_px and max(photo.size) > most_px:
        photo = photo.copy()
        photo.thumbnail((most_px, most_px), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photo.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue())


def sent_stored(data: bytes | None, most_px: int) -> bytes:
    """As sent(), from the stored bytes: they are decoded only if they must be shrunk.

    Raises:
        PhotoError: there are none, or they are no JPEG.
    """
    if data is None:
        raise PhotoError("bytes-missing", "the photo store has no bytes for it (any more)")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as photo:
            size = photo.size
    except Exception as error:  # noqa: BLE001 - as workers.photos: whatever it is, this photo cannot be judged
        raise PhotoError("undecodable", f"{type(error).__name__}: {error}") from None
    if most_px and max(size) > most_px:
        return sent(open_photo(data, most_px), most_px)
    return base64.b64encode(data)
