"""From stored bytes to a panel's inputs: fetch, decode, prepare.

In the claiming threads, beside the device's; a suspect in the device's own.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from configs.errors import PhotoError
from routing.messages import Item
from routing.store import PhotoStore
from workers.engines import Shot
from workers.panel import Panel

#: A panel's input for each item in order, or the error that says why there is none.
LoadInputs = Callable[[Sequence[Item]], Sequence[Any | PhotoError]]


def photo_loader(store: PhotoStore, panel: Panel, moved: Callable[[], None]) -> LoadInputs:
    """Loads photos for a tier's models.

    Args:
        store: where they wait.
        panel: prepares them.
        moved: called after each photo.
    """

    def load(items: Sequence[Item]) -> Sequence[Any | PhotoError]:
        inputs: list[Any | PhotoError] = []
        # A folder or an object store may take its time with each photo: that is no stall.
        step = len(items) if store.in_server else 1
        for start in range(0, len(items), step or 1):
            part = items[start : start + step]
            for item, data in zip(part, store.get(part), strict=True):
                try:
                    if panel.asked:
                        inputs.append(panel.prepare_stored(data, _shot(item)))
                    else:
                        inputs.append(panel.prepare(open_photo(data, 2 * panel.input_px), _shot(item)))
                except PhotoError as error:
                    inputs.append(error)
                except Exception as error:  # noqa: BLE001 - whatever an engine's library says of this photo, its neighbours go on
                    inputs.append(PhotoError("unpreparable", f"{type(error).__name__}: {error}"))
                moved()
        return inputs

    return load


def _shot(item: Item) -> Shot:
    # Two sources may both have a film "0001".
    sequence = f"{item.source}/{item.sequence}" if item.sequence else ""
    return Shot(item.size_px, item.focal_px, sequence, item.position)


def open_photo(data: bytes | None, least_px: int) -> Image.Image:
    """Decodes a stored photo.

    Args:
        data: a JPEG, as intake stores it; None: the store has none (any more).
        least_px: the caller needs no side shorter than this; a much larger JPEG is decoded at a half, quarter or eighth
            (DCT scaling).

    Returns:
        RGB, decoded.

    Raises:
        PhotoError: it cannot be decoded.
    """
    if data is None:
        raise PhotoError("bytes-missing", "the photo store has no bytes for it (any more)")
    try:
        photo = Image.open(io.BytesIO(data), formats=["JPEG"])
        photo.draft("RGB", (least_px, least_px))
        return photo.convert("RGB")
    except Exception as error:  # noqa: BLE001 - see below
        # Pillow raises OSError, SyntaxError, ValueError, struct.error and more, by format: whichever it is, this photo
        # cannot be judged.
        raise PhotoError("undecodable", f"{type(error).__name__}: {error}") from None
