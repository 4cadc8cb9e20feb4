"""Engines, one small file each, all alike: prepared photos become raw scores, on one device, in one thread."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec, Precision
from configs.serving import Server

#: The engine's name in the catalogue -> the module that holds its ``Engine``. Imported only when named.
ENGINES = {
    "grounding": "workers.engines.grounding",
    "florence": "workers.engines.florence",
    "onnx": "workers.engines.onnx",
    "detr": "workers.engines.detr",
    "depth": "workers.engines.depth",
    "cotracker": "workers.engines.cotracker",
    "anomalyclip": "workers.engines.anomalyclip",
    "ultralytics": "workers.engines.ultralytics",
    "yoloe": "workers.engines.yoloe",
    "sam3": "workers.engines.sam3",
    "sam3_agent": "workers.engines.sam3_agent",
    "heads": "workers.engines.heads",
    "classifier": "workers.engines.classifier",
    "effnet": "workers.engines.effnet",
    "focus": "workers.engines.focus",
    "fusion": "workers.engines.fusion",
    "vllm": "workers.engines.vllm",
    "kvpress": "workers.engines.kvpress",
}

#: Those that see boxes: their ``Engine`` is a workers.detections.Detector, here or in an interpreter of its own.
DETECTORS = frozenset({"detr", "grounding", "florence", "ultralytics", "yoloe", "sam3"})


class EngineAwayError(Exception):
    """The model cannot score at present, whatever the photos: a served model that is away. They wait and come again."""


class DeviceMemoryError(EngineAwayError):
    """The device has no memory for a batch of this size; a smaller one may fit."""


class Shot(Struct, frozen=True, gc=False):
    """What is known of a photo beside its pixels."""

    #: Width and height as it arrived, in pixels; (0, 0) when unknown. Engines see a smaller copy of the same shape.
    size_px: tuple[int, int] = (0, 0)
    #: Focal length in pixels of the photo as it arrived; 0.0 when unknown.
    focal_px: float = 0.0
    #: The film or burst that it is a frame of; empty for a still photo.
    sequence: str = ""
    #: Its place there.
    position: int = 0


class Runtime(Struct, frozen=True):
    """Where and how an engine runs."""

    #: "cpu" or "cuda:0": workers.device.pin() made it the only one.
    device: str = "cpu"
    #: Inputs of one score() at most; an engine may be handed fewer, never more.
    max_batch: int = 64
    #: "auto": the catalogue's.
    precision: Precision = "auto"
    #: Through torch.compile.
    compile: bool = False
    #: Of a served model: where its server is, how it is asked, and whether items wait while it is away.
    url: str = ""
    server: Server = Server()
    waits: bool = False
    #: Its server may sleep, and is not asked then.
    sleeps: bool = False


class Engine(Protocol):
    """What a tier needs of a model."""

    def load(self) -> None:
        """Loads the weights on the device.

        Raises:
            ConfigError: the library, the weights, an accepted licence or memory is missing; says which.
        """

    def warm_up(self) -> None:
        """Scores once at the size to come, so that the first photo is not the slow one."""

    def prepare(self, photo: Image.Image, shot: Shot) -> Any:
        """What score() takes, made from one decoded RGB photo; None: the model abstains. Runs in several threads."""

    def score(self, inputs: Sequence[Any]) -> Sequence[float | None]:
        """Raw logits, one an input, in their order; None: this model abstains. Runs in the device thread only.

        Raises:
            EngineAwayError, DeviceMemoryError: no photo's fault; any other exception is suspected to be one's.
        """


@runtime_checkable
class AskedEngine(Protocol):
    """What the engine of a served model has besides: many questions at once, each with its own end."""

    async def ask(self, one: Any) -> float | None:
        """As score(), of one input. Runs in the background loop (workers.background)."""

    def prepare_stored(self, data: bytes | None, shot: Shot) -> Any:
        """As prepare(), from a stored JPEG, which need not be decoded here; None: the store has none.

        Raises:
            PhotoError: there is nothing that could be asked about.
        """

    def take_counts(self) -> dict[str, int]:
        """What is to be counted in the ledger since it was last asked, by name."""


def require_engine(spec: ModelSpec) -> None:
    """Whether there is an engine for a model, its library apart.

    Raises:
        ConfigError: there is none.
    """
    if spec.engine not in ENGINES:
        raise ConfigError(f"model {spec.key!r}: this release has no engine {spec.engine!r}: {spec.reason}")


def build(spec: ModelSpec, runtime: Runtime) -> Engine:
    """The engine of a model, not yet loaded.

    Raises:
        ConfigError: no engine has that name, or its library is not installed.
    """
    require_engine(spec)
    try:
        module = import_module("workers.engines.apart" if spec.environment else ENGINES[spec.engine])
    except ImportError as error:
        remedy = spec.install or (f"pip install -e '.[{spec.extra}]'" if spec.extra else "install the project anew")
        raise ConfigError(f"model {spec.key!r}: engine {spec.engine!r} needs {error.name}: {remedy}") from None
    engine: Engine = module.Engine(spec, runtime)
    return engine
