"""natix-fleet models check, with the libraries of the engines: weights that are here, missing, damaged."""

import re
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from configs.errors import ConfigError, ServerError
from ops.model_check import check
from tests.engines.checkpoints import Shelf
from workers.engines import DeviceMemoryError, EngineAwayError
from workers.engines.classifier import Engine

KEY = "natix-roadwork-vit"


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the user fetched; and check() hides GPUs from this process, which must not last."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def folder(shelf: Shelf) -> Path:
    """A small classifier under the row's key, of the row's own input size and class."""
    torch.manual_seed(0)
    names = {0: "None", 1: "Roadwork"}
    config = ViTConfig(
        id2label=names,
        label2id={name: i for i, name in names.items()},
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return shelf.put(KEY, ViTForImageClassification(config), ViTImageProcessor())


@pytest.mark.usefixtures("folder")
def test_weights_that_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    """A row of the catalogue is loaded and asked, and its uncalibrated word is called what it is."""
    check(KEY, None, "cpu")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "natix-roadwork-vit@1 (classifier) on cpu, a drawn scene with roadwork"
    assert re.fullmatch(
        r"score [+-]\d\.\d{4}, P\(roadwork\) 0\.\d{4} \(no calibrator was fitted: this is no probability\)", said[1]
    )
    assert len(said) == 4


@pytest.mark.usefixtures("shelf")
def test_weights_that_are_missing() -> None:
    """The line says how to fetch them, and where else to put them."""
    with pytest.raises(
        ConfigError, match=r"natix-fleet models fetch natix-roadwork-vit \(from natix-network-org/roadwork"
    ):
        check(KEY, None, "cpu")
    with pytest.raises(
        ConfigError, match="from facebook/sam3, after accepting its licence on the hub and setting HF_TOKEN"
    ):
        check("sam3", None, "cpu")


def test_weights_that_are_damaged(folder: Path) -> None:
    """A file that is no checkpoint is told in one line with the library's reason."""
    (folder / "model.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="its weights cannot be loaded: ") as caught:
        check(KEY, None, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DeviceMemoryError("CUDA out of memory"), ConfigError, "cpu has no memory left to score one photo: CUDA out"),
        (EngineAwayError("connection refused"), ServerError, "is away: connection refused"),
    ],
    ids=["memory", "away"],
)
def test_what_an_engine_says_of_its_device(
    error: Exception, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that ran out and a served model that is away are one line each, with a status of their own."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Engine, "warm_up", fails)
    with pytest.raises(kind, match=words):
        check(KEY, None, "cpu")
