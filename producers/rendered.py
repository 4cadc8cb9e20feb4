"""Scenes that the project renders: photos with labels for a first run on a machine that has none."""

import io
from collections.abc import Iterator

from configs.errors import UsageError
from producers.scenes import DEMO_SEEDS, render
from producers.sources import Photo

JPEG_QUALITY = 90


class RenderedSource:
    """The first ``count`` demo scenes: none of them was rendered in training, but their generator was."""

    def __init__(self, count: int) -> None:
        self.name = "rendered"
        self._count = count
        self.total: int | None = count
        self.note = "rendered, same generator as in training: a smoke figure"

    def photos(self, start: int) -> Iterator[Photo]:
        """The scenes from position ``start`` on, as JPEG."""
        for seed in DEMO_SEEDS[start : self._count]:
            image, label = render(seed)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=JPEG_QUALITY)
            yield Photo(f"scene {seed}", buffer.getvalue(), "rendered", label)


def open_rendered(count: str, limit: int | None) -> RenderedSource:
    """Opens ``rendered:count``.

    Raises:
        UsageError: ``count`` is no whole number from 1 to the number of demo seeds.
    """
    # isascii: int() would read digits of any script.
    number = int(count) if count.isascii() and count.isdigit() and len(count) < 10 else 0
    if not 1 <= number <= len(DEMO_SEEDS):
        raise UsageError(f"rendered:{count}: give a whole number from 1 to {len(DEMO_SEEDS)}, as in rendered:500")
    return RenderedSource(number if limit is None else min(number, limit))
