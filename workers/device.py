"""One process, one device: pinned before any engine library is imported, and refused when it is not there."""

import os

from configs.errors import ConfigError, UsageError
from workers.gpus import gpus


def pin(device: str) -> str:
    """Makes ``device`` the only one that this process sees; call it before importing an engine.

    Args:
        device: "cpu", "cuda:0" (index) or "cuda:GPU-..." (UUID).

    Returns:
        The device as engines name it from now on: "cpu" or "cuda:0".

    Raises:
        UsageError: not a device.
        ConfigError: no such GPU here.
    """
    if device == "cpu":
        # The empty string means no GPU; unset would mean all of them.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "cpu"
    kind, _, which = device.partition(":")
    if kind != "cuda" or not which:
        raise UsageError(f"device {device!r} is neither cpu nor cuda:INDEX nor cuda:GPU-UUID")
    present = [name for gpu in gpus() for name in (gpu.index, gpu.uuid)]
    if which not in present:
        have = ", ".join(present) or "none"
        raise ConfigError(
            f"device {device!r}: no such GPU here (there are: {have}); use --device cpu or one that nvidia-smi -L lists"
        )
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = which
    return "cuda:0"
