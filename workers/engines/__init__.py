"""Engines, one small file each, all alike: prepared photos become raw scores, on one device, in one thread."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec

#: The engine's name in model.toml -> the module that holds its ``Engine``. Imported only when named.
ENGINES = {"onnx": "workers.engines.onnx"}


class EngineAwayError(Exception):
    """The model cannot score at present, whatever the photos: a served model that is away. They wait and come again."""


class DeviceMemoryError(EngineAwayError):
    """The device has no memory for a batch of this size; a smaller one may fit."""


class Engine(Protocol):
    """What a tier needs of a model."""

    def load(self) -> None:
        """Loads the weights on the device."""

    def warm_up(self) -> None:
        """Scores once at the size to come, so that the first photo is not the slow one."""

    def prepare(self, photo: Image.Image) -> Any:
        """What score() takes, made from one decoded RGB photo. Runs in several threads."""

    def score(self, inputs: Sequence[Any]) -> Sequence[float | None]:
        """Raw logits, one an input, in their order; None: this model abstains. Runs in the device thread only.

        Raises:
            EngineAwayError, DeviceMemoryError: no photo's fault; any other exception is suspected to be one's.
        """


def build(spec: ModelSpec, device: str, max_batch: int) -> Engine:
    """The engine of a model specification, not yet loaded.

    Raises:
        ConfigError: no engine has that name.
    """
    if spec.engine not in ENGINES:
        raise ConfigError(f"model {spec.key!r}: no engine {spec.engine!r}; there are {', '.join(sorted(ENGINES))}")
    engine: Engine = import_module(ENGINES[spec.engine]).Engine(spec, device, max_batch)
    return engine
