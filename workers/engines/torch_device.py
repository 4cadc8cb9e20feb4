"""What the engines on torch share: a model's type and place, batches no larger than agreed, memory that runs out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from configs.errors import ConfigError
from configs.model import ModelSpec
from workers.engines import DeviceMemoryError, Runtime

T = TypeVar("T")

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(spec: ModelSpec, runtime: Runtime) -> torch.dtype:
    """The type of a model's weights and inputs: the profile's, else the catalogue's; on a CPU fp32 unless asked.

    Raises:
        ConfigError: a precision that these engines have not.
    """
    wanted = runtime.precision
    if wanted == "auto":
        wanted = "fp32" if runtime.device == "cpu" else spec.precision
    if wanted not in _DTYPES:
        raise ConfigError(f"model {spec.key!r}: engine {spec.engine!r} runs in {', '.join(_DTYPES)}, not {wanted}")
    return _DTYPES[wanted]


def pretrained(spec: ModelSpec, load: Callable[[], T]) -> T:
    """What ``load`` reads from disk, by whatever library.

    Raises:
        ConfigError: it cannot; one line with the library's own reason.
    """
    try:
        return load()
    except Exception as error:  # noqa: BLE001 # each library raises what it likes: OSError, KeyError, ValueError, RuntimeError
        raise ConfigError(
            f"model {spec.key!r}: its weights cannot be loaded: {type(error).__name__}: {_line(error)}"
        ) from None


def place(model: Any, dtype: torch.dtype, runtime: Runtime) -> Any:
    """A model on its device, for inference only, compiled if the profile says so.

    Raises:
        ConfigError: the device has no memory for the weights.
    """
    try:
        model = model.eval().requires_grad_(requires_grad=False).to(runtime.device, dtype)
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise ConfigError(f"{runtime.device} has no memory for the weights: {_line(error)}") from None
    return torch.compile(model) if runtime.compile else model


@contextmanager
def inference() -> Iterator[None]:
    """Around a forward pass: no gradients, and memory that ran out is said in the fleet's word.

    Raises:
        DeviceMemoryError: the batch was too large for the device.
    """
    try:
        with torch.inference_mode():
            yield
    except RuntimeError as error:
        # OutOfMemoryError is one; cuBLAS and cuDNN raise it bare.
        if not isinstance(error, torch.OutOfMemoryError) and "_ALLOC_FAILED" not in str(error):
            raise
        # What is left in its cache is in the way of the smaller batch that comes next.
        torch.cuda.empty_cache()
        raise DeviceMemoryError(_line(error)) from error


def parts(inputs: Sequence[T], max_batch: int) -> Iterator[Sequence[T]]:
    """Inputs in batches of at most ``max_batch``."""
    for start in range(0, len(inputs), max_batch):
        yield inputs[start : start + max_batch]


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
