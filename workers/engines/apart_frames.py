"""What an engine in another interpreter is asked, and what it says: frames over a pipe.

A frame is a length of 8 bytes, big endian, then MessagePack. Pixels, boxes and depths travel as raw bytes with their
type and shape; nothing is pickled.
"""

from typing import IO, Any, Literal, TypeVar, get_origin

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from configs.model import ModelSpec
from workers.detections import Detections, Floats
from workers.engines import Runtime, Shot

T = TypeVar("T")

#: What an engine may be asked of photos: a method of its own name.
Verb = Literal["score", "detect", "measure"]


class Photo(Struct, frozen=True):
    """One photo, not yet prepared."""

    #: Width and height in pixels.
    size_px: tuple[int, int]
    #: Rows from the top, 3 bytes a pixel.
    rgb: bytes
    shot: Shot


class Load(Struct, frozen=True, tag=True):
    """Builds the engine and loads its weights."""

    spec: ModelSpec
    runtime: Runtime


class WarmUp(Struct, frozen=True, tag=True):
    """Scores once at the size to come."""


class Ask(Struct, frozen=True, tag=True):
    """Prepares photos and has the engine look at them."""

    what: Verb
    photos: list[Photo]


class Done(Struct, frozen=True, tag=True):
    """Nothing went wrong."""


class Scores(Struct, frozen=True, tag=True):
    """Of each photo a raw logit; None: the engine abstains."""

    found: list[float | None]


class Boxes(Struct, frozen=True, tag=True):
    """Of each photo the boxes; None: the engine abstains."""

    found: list[Detections | None]


class Depths(Struct, frozen=True, tag=True):
    """Of each photo the depth in metres, (h, w); None: the engine abstains."""

    found: list[Floats | None]


class Failed(Struct, frozen=True, tag=True):
    """The engine raised."""

    kind: Literal["config", "memory", "away", "other"]
    reason: str


Request = Load | WarmUp | Ask
Reply = Done | Scores | Boxes | Depths | Failed


class _Array(Struct):
    """How an array travels."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def send(pipe: IO[bytes], message: Request | Reply) -> None:
    """Writes one frame.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    body = msgspec.msgpack.encode(message, enc_hook=_pack)
    pipe.write(len(body).to_bytes(8))
    pipe.write(body)
    pipe.flush()


def receive(pipe: IO[bytes], kind: type[T]) -> T:
    """Reads one frame, blocking.

    Raises:
        EOFError: nobody writes any more.
    """
    head = pipe.read(8)
    body = pipe.read(int.from_bytes(head)) if len(head) == 8 else b""
    if not body:
        raise EOFError
    return msgspec.msgpack.decode(body, type=kind, dec_hook=_unpack)


def _pack(value: Any) -> _Array:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"a {type(value).__name__} cannot travel")
    return _Array(value.dtype.str, value.shape, value.tobytes())


def _unpack(kind: type, value: Any) -> npt.NDArray[Any]:
    if get_origin(kind) is not np.ndarray:
        raise NotImplementedError(f"a {kind} cannot travel")
    packed = msgspec.convert(value, _Array)
    return np.frombuffer(packed.data, packed.dtype).reshape(packed.shape)
