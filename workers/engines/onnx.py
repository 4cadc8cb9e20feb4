"""Runs an ONNX model on the CPU or a GPU: pixels in, one raw logit a photo out; normalisation is inside the model."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import DeviceMemoryError, Runtime, Shot
from workers.engines.square import Pixels, square

#: Threads of one session. One by default: a process of every tier runs at the same time, on few cores.
THREADS_VARIABLE = "NATIX_FLEET_ORT_THREADS"

#: What onnxruntime says when memory ran out; its exceptions are of many types without a common parent. The first is its
#: arena's, on either device; then CUDA's, and those of its libraries.
NO_MEMORY = ("Failed to allocate memory", "smaller than requested bytes", "out of memory", "_ALLOC_FAILED", "bad_alloc")


def _threads() -> int:
    text = os.environ.get(THREADS_VARIABLE, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{THREADS_VARIABLE}={text!r} is not a number of threads, 1 or more")
    return int(text)


def open_session(spec: ModelSpec, device: str, model: str | bytes) -> Any:
    """An onnxruntime session of a model on a device; ``model`` is a path, or the model itself.

    Raises:
        ConfigError: it is no model, or the device cannot run it.
    """
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ConfigError(
                f"model {spec.key!r}: device {device!r} needs onnxruntime-gpu, "
                f"this onnxruntime {onnxruntime.__version__} has no CUDA"
            )
        # The process sees its own GPU only (CUDA_VISIBLE_DEVICES), so it is number 0 here whatever its name.
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    # Threads that spin while they wait would take the core that decodes the next photos.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # noqa: BLE001 # onnxruntime raises a dozen types without a common parent
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model {spec.key!r}: {spec.file} cannot be loaded: {reason}") from None
    if providers[0] not in session.get_providers():
        raise ConfigError(f"model {spec.key!r}: onnxruntime could not start {providers[0]} for {device}")
    return session


class Engine:
    """One model on one device."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._device = runtime.device
        self._max_batch = runtime.max_batch
        self._session: Any = None
        self._input = ""

    def load(self) -> None:
        """Loads the weights.

        Raises:
            ConfigError: the file is missing or no model for us, or the device cannot run it.
        """
        path = self._spec.path
        if not path.is_file():
            raise ConfigError(f"model {self._spec.key!r}: there is no file {path}")
        session = open_session(self._spec, self._device, str(path))
        taken = session.get_inputs()[0]
        side_px = self._spec.input_px
        if taken.type != "tensor(uint8)" or list(taken.shape[1:]) != [side_px, side_px, 3]:
            raise ConfigError(
                f"model {self._spec.key!r}: {path} takes {taken.type} {taken.shape}, "
                f"not uint8 photos of ({side_px}, {side_px}, 3)"
            )
        self._session, self._input = session, taken.name

    def warm_up(self) -> None:
        """Scores one full batch of grey, so that memory of that size is taken before the first photo."""
        grey = np.full((self._spec.input_px, self._spec.input_px, 3), 127, dtype=np.uint8)
        self.score([grey] * self._max_batch)

    def prepare(self, photo: Image.Image, shot: Shot) -> Pixels:  # noqa: ARG002 - the contract's
        """The model's input from one RGB photo."""
        return square(photo, self._spec.input_px)

    def score(self, inputs: Sequence[Pixels]) -> list[float]:
        """One raw logit a photo, in their order.

        Raises:
            DeviceMemoryError: there is no memory for so many at once.
        """
        if self._session is None:
            raise RuntimeError("score() before load()")
        logits: list[float] = []
        for start in range(0, len(inputs), self._max_batch):
            part = inputs[start : start + self._max_batch]
            (found,) = self._run(part)
            if found.shape != (len(part),):
                raise ConfigError(f"model {self._spec.key!r}: {len(part)} photos gave scores of shape {found.shape}")
            logits.extend(found.tolist())
        return logits

    def _run(self, part: Sequence[Pixels]) -> list[Any]:
        try:
            outputs: list[Any] = self._session.run(None, {self._input: np.stack(part)})
        except MemoryError as error:
            raise DeviceMemoryError(str(error)) from error
        except Exception as error:
            if any(words in str(error) for words in NO_MEMORY):
                raise DeviceMemoryError(str(error)) from error
            raise
        return outputs
