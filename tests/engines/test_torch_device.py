"""Memory that runs out under torch, said in the fleet's words."""

import pytest
import torch

from configs.errors import ConfigError
from workers.engines import DeviceMemoryError, Runtime
from workers.engines.torch_device import inference, place


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_memory_that_runs_out_in_a_forward_pass_is_no_photos_fault(error: RuntimeError) -> None:
    """torch says it in three ways; the batcher hears one, in one line."""
    with pytest.raises(DeviceMemoryError) as caught, inference():
        raise error
    assert "\n" not in str(caught.value)


def test_any_other_error_of_a_forward_pass_stays_what_it_is() -> None:
    """It may be a photo's fault."""
    with pytest.raises(RuntimeError, match="shape") as caught, inference():
        raise RuntimeError("shape mismatch")
    assert not isinstance(caught.value, DeviceMemoryError)


class Large(torch.nn.Module):  # type: ignore[misc] # torch has no types here
    """No device is large enough for it."""

    def to(self, *_: object) -> "Large":
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_weights_that_do_not_fit_are_a_matter_of_configuration() -> None:
    """A worker ends with one line, and takes no work."""
    with pytest.raises(ConfigError, match="no memory for the weights"):
        place(Large(), torch.float32, Runtime("cpu"))


def test_nothing_is_learnt_while_scoring() -> None:
    """No gradients are kept for weights that are placed, nor for what is computed from them."""
    layer = place(torch.nn.Linear(2, 1), torch.float32, Runtime("cpu"))
    with inference():
        out = layer(torch.ones(1, 2))
    assert not out.requires_grad
    assert not layer.training
