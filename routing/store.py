"""The photo store: bytes by item id, from intake to verdict. Pixels never travel in a message."""

from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import quote

import fsspec
import redis

from configs.errors import ConfigError
from routing.ledger import PREFIX
from routing.messages import Item
from routing.patience import StoreAwayError

#: Bytes that were put and never admitted go by themselves after this long.
UNADMITTED_TTL_S = 600


class PhotoStore(Protocol):
    """Where bytes wait. ``in_server``: the ledger looks after them (admit checks and keeps, commit unlinks)."""

    in_server: bool

    def put(self, source: str, photos: Sequence[tuple[int, bytes]]) -> None:
        """Stores photos of a source by position."""

    def get(self, items: Sequence[Item]) -> list[bytes | None]:
        """The bytes of each item; None where there are none (any more)."""

    def drop(self, source: str, positions: Sequence[int]) -> None:
        """Forgets bytes whose verdicts are committed; a no-op where the ledger does it."""


class ServerPhotos:
    """In the ledger's own server."""

    in_server = True

    def __init__(self, server: redis.Redis) -> None:
        self._server = server

    def put(self, source: str, photos: Sequence[tuple[int, bytes]]) -> None:
        """Stores with a TTL; admit lifts it."""
        pipe = self._server.pipeline(transaction=False)
        for position, data in photos:
            # Not over an admitted photo: a producer that lost its epoch would give it a time to live again.
            pipe.set(f"{PREFIX}img:{source}:{position}", data, ex=UNADMITTED_TTL_S, nx=True)
        pipe.execute()

    def get(self, items: Sequence[Item]) -> list[bytes | None]:
        """One round trip."""
        if not items:
            return []
        found: list[Any] = self._server.mget([f"{PREFIX}img:{item.source}:{item.position}" for item in items])
        return found

    def drop(self, source: str, positions: Sequence[int]) -> None:
        """Commit unlinked them."""


class FilePhotos:
    """Under an fsspec URL: a folder, or a bucket of an object store."""

    in_server = False

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
            self._files.makedirs(self._root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"photos.store {url!r}: {error}") from None

    def _folder(self, source: str) -> str:
        # A name out of the ledger must not climb: who can write there is not to read or delete files on this machine.
        name = quote(source, safe="")
        return f"{self._root}/{'%2E' + name[1:] if name.startswith('.') else name}"

    def _path(self, source: str, position: int) -> str:
        return f"{self._folder(source)}/{position:012d}.jpg"

    def put(self, source: str, photos: Sequence[tuple[int, bytes]]) -> None:
        """Writes them one by one; an OSError passes through."""
        self._files.makedirs(self._folder(source), exist_ok=True)
        for position, data in photos:
            self._files.pipe_file(self._path(source, position), data)

    def get(self, items: Sequence[Item]) -> list[bytes | None]:
        """Reads them one by one; one that is not there is None."""
        found: list[bytes | None] = []
        for item in items:
            try:
                found.append(self._files.cat_file(self._path(item.source, item.position)))
            except FileNotFoundError:
                found.append(None)
            except OSError as error:
                raise StoreAwayError(f"{self._root}: {error}") from error
        return found

    def drop(self, source: str, positions: Sequence[int]) -> None:
        """Deletes them; those that are gone already are no error."""
        for position in positions:
            path = self._path(source, position)
            if self._files.exists(path):
                self._files.rm_file(path)


def open_store(url: str, server: redis.Redis) -> PhotoStore:
    """The store of a profile: "redis", or an fsspec URL.

    Raises:
        ConfigError: no such file system, or its folder cannot be made.
    """
    return ServerPhotos(server) if url == "redis" else FilePhotos(url)
