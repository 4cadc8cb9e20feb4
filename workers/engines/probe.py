"""A linear probe: a frozen trunk that a package of the index ships, and a linear head of the project's own on it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import Runtime, Shot
from workers.engines.square import Pixels, square
from workers.weights import find

#: (N, D), one row a photo.
Features = npt.NDArray[np.float32]


class Probe(ABC):
    """An engine whose score is linear in what a frozen trunk sees.

    The row's options say where the trunk is: ``package``, the import name of an installed package, which is never
    imported; ``trunk``, a file in it; ``sha256`` of that file, because a head fits the one trunk it was fitted on.
    The row's file is the head: an .npz with ``weight`` (D,) and ``bias`` (), both float32; the scaling of features is
    folded into them.
    """

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._runtime = runtime

    def load(self) -> None:
        """Loads the trunk, then the head.

        Raises:
            ConfigError: a package or a file is missing or another one, or the device cannot run it.
        """
        self.load_trunk(packaged(self._spec))
        path = find(self._spec)
        try:
            with np.load(path, allow_pickle=False) as held:
                self._weight, self._bias = held["weight"].astype(np.float32), float(held["bias"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"model {self._spec.key!r}: {path} is no head: {error}") from None
        seen = self.features([self._grey()])
        if self._weight.shape != seen.shape[1:]:
            raise ConfigError(
                f"model {self._spec.key!r}: {path} is for features of {self._weight.shape}, the trunk's are "
                f"{seen.shape[1:]}"
            )

    @abstractmethod
    def load_trunk(self, path: Path) -> None:
        """Puts the trunk on the device.

        Raises:
            ConfigError: the file does not hold it, or the device cannot run it.
        """

    @abstractmethod
    def features(self, inputs: Sequence[Pixels]) -> Features:
        """What the trunk sees, in the inputs' order. Runs in the device thread only; raises as Engine.score()."""

    def warm_up(self) -> None:
        """Scores one full batch of grey."""
        self.score([self._grey()] * self._runtime.max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Pixels:  # noqa: ARG002 - the contract's
        """The photo as a square."""
        return square(photo, self._spec.input_px)

    def score(self, inputs: Sequence[Pixels]) -> list[float | None]:
        """One raw logit a photo, in their order.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        if not inputs:
            return []
        logits: list[float | None] = (self.features(inputs) @ self._weight + self._bias).tolist()
        return logits

    def _grey(self) -> Pixels:
        return np.full((self._spec.input_px, self._spec.input_px, 3), 127, np.uint8)


def packaged(spec: ModelSpec) -> Path:
    """The trunk's file within an installed package, checked; the row's id and revision name the package.

    What the package itself requires is not asked for: nothing of it is imported, its file is all that is read.

    Raises:
        ConfigError: the package is not installed, has no such file, or another version of it.
    """
    package, file, digest = (str(spec.options.get(name, "")) for name in ("package", "trunk", "sha256"))
    remedy = spec.install or f"pip install -e '.[{spec.extra}]'"
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"model {spec.key!r}: its trunk is in the package {package}, which is not installed: {remedy}"
        )
    path = Path(found.submodule_search_locations[0]) / file
    try:
        with path.open("rb") as held:
            actual = hashlib.file_digest(held, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"model {spec.key!r}: its trunk: {error.strerror} ({path}): {remedy}") from None
    if actual != digest:
        raise ConfigError(f"model {spec.key!r}: {path} is not the trunk that the head was fitted on: {remedy}")
    return path
