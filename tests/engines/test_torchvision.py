"""torchvision beside a torch without CUDA, as ops.cpu_torchvision leaves it."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from configs.errors import ConfigError
from ops.cpu_torchvision import mend


def test_its_kernels_are_there() -> None:
    """NMS, RoI align and the JPEG decoder, which live in its two libraries, do what they should."""
    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], dtype=torch.float32)
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)
    assert kept.tolist() == [1, 2]
    # The mean of a ramp over the middle half is that of its middle.
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    middle = torchvision.ops.roi_align(ramp, [torch.tensor([[2.0, 2.0, 6.0, 6.0]])], output_size=1, aligned=True)
    assert middle.item() == pytest.approx(3.5)
    file = io.BytesIO()
    Image.new("RGB", (48, 32), (200, 30, 90)).save(file, "JPEG", quality=95)
    photo = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    assert photo.shape == (3, 32, 48)
    assert photo.float().mean((1, 2)).tolist() == pytest.approx([200, 30, 90], abs=3)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch with CUDA wants nothing mended")
def test_mending_twice_is_mending_once(tmp_path: Path) -> None:
    """What was mended may be mended again, as make does after each install; it works and says the same."""
    packages = Path(torchvision.__file__).parents[1]
    for name in ("torchvision", "torchvision.libs"):
        shutil.copytree(packages / name, tmp_path / name)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/lib").symlink_to(packages / "torch/lib")
    first = mend(tmp_path)
    assert first.startswith("torchvision mended for a torch without CUDA: ")
    mended = {path.name: path.stat().st_size for path in tmp_path.rglob("*.so*")}
    assert mend(tmp_path) == first
    assert {path.name: path.stat().st_size for path in tmp_path.rglob("*.so*")} == mended
    code = (
        "import torch, torchvision\n"
        "print(torchvision.__file__, torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(tmp_path / "torchvision/__init__.py"), "[0]"], done.stderr


def test_a_torch_with_cuda_is_left_alone(tmp_path: Path) -> None:
    """Where torch brings its own CUDA, nothing is written."""
    library = tmp_path / "torch/lib/libtorch_cuda.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/_C.so").touch()
    before = sorted(tmp_path.rglob("*"))
    assert mend(tmp_path) == "torch has CUDA: nothing to mend"
    assert sorted(tmp_path.rglob("*")) == before


def test_without_torchvision_it_says_so(tmp_path: Path) -> None:
    """There is nothing to mend, and that is an error."""
    with pytest.raises(ConfigError, match="there is no torchvision under"):
        mend(tmp_path)
