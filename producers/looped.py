"""A source that begins again at its end, for a stream that never ends."""

from collections.abc import Iterator

from configs.errors import UsageError
from producers.sources import Photo, Source


class Looped:
    """The photos of a source, over and over; positions go on counting, so each pass is other images.

    Raises:
        UsageError: the source cannot say how many photos it has.
    """

    def __init__(self, source: Source) -> None:
        if not source.total:
            raise UsageError(f"--loop needs a source that knows its length; {source.name!r} does not")
        self.name = source.name
        self.total: int | None = None
        self.note = source.note
        self._source = source
        self._length = source.total

    def photos(self, start: int) -> Iterator[Photo]:
        """Photos from position ``start`` on, without end."""
        skip = start % self._length
        while True:
            yield from self._source.photos(skip)
            skip = 0
