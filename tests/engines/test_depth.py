"""Metric depth: Depth Anything 3 as its own package builds it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from configs.errors import ConfigError
from tests.engines.checkpoints import Shelf, engine_of, photos
from workers.engines import Runtime, Shot

# On import it compiles a function by torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Depth = npt.NDArray[np.float32]

# In this interpreter, wherever the catalogue says that it runs.
SMALL: dict[str, Any] = {"input_px": 56, "environment": ""}
NET = {"name": "vits", "out_layers": [2, 5, 8, 11], "alt_start": -1, "qknorm_start": -1, "rope_start": -1}
HEAD = {"dim_in": 384, "output_dim": 1, "features": 16, "out_channels": [8, 8, 16, 16]}


class Checkpoint:
    """A metric model with a small head, as the hub's folder of the large one is laid out."""

    def __init__(self) -> None:
        from depth_anything_3.model.da3 import DepthAnything3Net
        from depth_anything_3.model.dinov2.dinov2 import DinoV2
        from depth_anything_3.model.dpt import DPT

        torch.manual_seed(0)
        self.net: Any = DepthAnything3Net(DinoV2(**NET, cat_token=False), DPT(**HEAD)).eval()
        # At random weights sky is anything; no sky unless a test wants some.
        torch.nn.init.constant_(self.net.head.scratch.sky_output_conv2[2].bias, -100.0)

    def save_pretrained(self, folder: Path) -> None:
        config = {
            "model_name": "da3metric-large",
            "config": {
                "__object__": {"path": "depth_anything_3.model.da3", "name": "DepthAnything3Net"},
                "net": {"__object__": {"path": "no.such.module", "name": "Evil"}, **NET, "cat_token": False},
                "head": {"__object__": {"path": "no.such.module", "name": "Evil"}, **HEAD},
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        weights = {f"model.{key}": w.contiguous() for key, w in self.net.state_dict().items()}
        save_file(weights, folder / "model.safetensors")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint()


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One for all tests: the smallest backbone that the package has is of 22 million weights."""
    with pytest.MonkeyPatch.context() as patch:
        Shelf(tmp_path_factory.mktemp("shelf"), patch).put("da3-metric-large", checkpoint)
        yield engine_of("da3-metric-large", Runtime(max_batch=2), **SMALL)


def shots(pictures: list[Image.Image], focal_px: float = 500.0) -> list[Shot]:
    """Of photos that arrived at twice the size."""
    return [Shot(size_px=(2 * p.width, 2 * p.height), focal_px=focal_px) for p in pictures]


def depths(engine: Any, pictures: list[Image.Image], focal_px: float = 500.0) -> list[Depth]:
    pairs = zip(pictures, shots(pictures, focal_px), strict=True)
    return list(engine.measure([engine.prepare(photo, shot) for photo, shot in pairs]))


def test_metres_as_the_library_has_them(engine: Any, checkpoint: Checkpoint) -> None:
    """A saved model measures what the package's own network and its own scaling do, for photos of each shape."""
    from depth_anything_3.utils.alignment import apply_metric_scaling

    pictures = photos(4)
    for photo, shot, depth_m in zip(pictures, shots(pictures), depths(engine, pictures), strict=True):
        sight = engine.prepare(photo, shot)
        pixels = (sight.pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        views = torch.from_numpy(pixels).float().permute(2, 0, 1)[None, None]
        with torch.inference_mode():
            raw = checkpoint.net(views)["depth"]
        intrinsics = torch.eye(3).repeat(1, 1, 1, 1)
        intrinsics[..., 0, 0] = shot.focal_px * sight.pixels.shape[1] / shot.size_px[0]
        intrinsics[..., 1, 1] = shot.focal_px * sight.pixels.shape[0] / shot.size_px[1]
        expected = apply_metric_scaling(raw, intrinsics)[0, 0].numpy()
        assert depth_m.shape == sight.pixels.shape[:2]
        assert depth_m.dtype == np.float32
        assert max(depth_m.shape) == 56
        np.testing.assert_allclose(depth_m, expected, rtol=1e-3)


def test_depth_is_the_same_in_any_company(engine: Any) -> None:
    """Alone, backwards, or among others of other shapes; and it grows with the focal length."""
    pictures = [picture.resize((60, 40)) for picture in photos(3)] + photos(2)
    together = depths(engine, pictures)
    backwards = depths(engine, pictures[::-1])[::-1]
    closer = depths(engine, pictures, focal_px=250.0)
    for i, picture in enumerate(pictures):
        np.testing.assert_allclose(depths(engine, [picture])[0], together[i], rtol=1e-3)
        np.testing.assert_allclose(backwards[i], together[i], rtol=1e-3)
        np.testing.assert_allclose(closer[i], together[i] / 2, rtol=1e-3)
    assert not np.allclose(together[0], together[1], rtol=1e-3)
    assert depths(engine, []) == []


def test_sky_has_no_depth(engine: Any, shelf: Shelf, checkpoint: Checkpoint) -> None:
    """Where the model sees sky it is infinitely far, whatever the depth output says there; elsewhere it is finite."""
    [ground_m] = depths(engine, photos(1))
    assert np.isfinite(ground_m).all()
    folder = shelf.put("da3-metric-large", checkpoint)
    weights = load_file(folder / "model.safetensors")
    weights["model.head.scratch.sky_output_conv2.2.bias"].fill_(100.0)
    save_file(weights, folder / "model.safetensors")
    [sky_m] = depths(engine_of("da3-metric-large", **SMALL), photos(1))
    assert np.isposinf(sky_m).all()


@pytest.mark.parametrize(
    "shot", [Shot(), Shot(size_px=(100, 50)), Shot(focal_px=500.0), Shot(size_px=(0, 50), focal_px=500.0)]
)
def test_without_the_camera_it_abstains(engine: Any, shot: Shot) -> None:
    """No focal length or no size, no metres; and never a vote."""
    assert engine.prepare(photos(1)[0], shot) is None
    known = Shot(size_px=(100, 50), focal_px=500.0)
    assert engine.score([engine.prepare(photo, known) for photo in photos(3)]) == [None] * 3


def test_weights_of_another_model(shelf: Shelf, checkpoint: Checkpoint) -> None:
    """A folder without sizes, or with weights that do not fit them, is one clear line."""
    folder = shelf.put("da3-metric-large", checkpoint)
    wide = json.loads((folder / "config.json").read_text())
    wide["config"]["head"]["features"] = 32
    (folder / "config.json").write_text(json.dumps(wide))
    with pytest.raises(ConfigError, match="'da3-metric-large': its weights cannot be loaded: RuntimeError: ") as error:
        engine_of("da3-metric-large", **SMALL)
    assert "\n" not in str(error.value)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="its weights cannot be loaded: KeyError: 'config'"):
        engine_of("da3-metric-large", **SMALL)
