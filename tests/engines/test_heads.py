"""Own heads on a DINOv3 backbone that rows share."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

from configs.errors import ConfigError
from configs.model import ModelSpec
from tests.engines.checkpoints import STILL, Shelf, photos, scores_of
from tests.engines.contract import holds
from workers.engines import Runtime, build
from workers.engines.heads import Engine, Heads, Tokens, backbone
from workers.panel import Member, Panel

WIDTH = 32
ROW = ModelSpec(
    key="dinov3-heads",
    state="shape",
    reason="a small one at random weights",
    engine="heads",
    extra="detectors",
    input_px=64,
    options={"heads": "heads.safetensors"},
)
ALONE = replace(ROW, key="dinov3-vith16plus", options={})


def dinov3() -> DINOv3ViTModel:
    """A DINOv3 of two layers, with registers and the gated MLP of the H+."""
    torch.manual_seed(0)
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_register_tokens=4,
            use_gated_mlp=True,
            initializer_range=0.3,
        )
    )


def weights(*kinds: str, queries: int = 3, width: int = WIDTH) -> dict[str, torch.Tensor]:
    """Heads at random weights."""
    dice = torch.Generator().manual_seed(1)
    found = {}
    for kind in kinds:
        pooled = queries if kind == "attentive" else 1
        found[f"{kind}.weight"] = torch.randn(pooled * width, generator=dice)
        found[f"{kind}.bias"] = torch.randn(1, generator=dice)
    if "attentive" in kinds:
        found["attentive.queries"] = torch.randn(queries, width, generator=dice)
    return found


@pytest.fixture
def folder(shelf: Shelf) -> Path:
    """A backbone on the shelf, under both rows' keys, as one folder of the hub's cache is for both."""
    put = shelf.put(ROW.key, dinov3(), DINOv3ViTImageProcessor())
    put.with_name(ALONE.key).symlink_to(put)
    return put


def loaded(spec: ModelSpec = ROW, **changes: Any) -> Engine:
    """The engine of a row, loaded and warm."""
    engine = build(replace(spec, **changes), Runtime(max_batch=4))
    engine.load()
    engine.warm_up()
    assert isinstance(engine, Engine)
    return engine


@pytest.mark.parametrize("kinds", [("cls",), ("mean",), ("attentive",), ("cls", "mean", "attentive")])
def test_heads_score_each_photo(folder: Path, kinds: tuple[str, ...]) -> None:
    """Any of the three heads, or all, score each photo by itself."""
    save_file(weights(*kinds), folder / "heads.safetensors")
    scores = holds(loaded())
    assert len({round(score or 0.0, 4) for score in scores}) == len(scores)


def test_the_score_is_the_mean_of_the_heads(folder: Path) -> None:
    """All three together say the mean of what each says alone, and each is what its formula says."""
    pictures = photos(3)
    held = weights("cls", "mean", "attentive")
    said = []
    for kind in ("cls", "mean", "attentive"):
        save_file({name: t for name, t in held.items() if name.startswith(kind)}, folder / "heads.safetensors")
        said.append(scores_of(loaded(), pictures))
    save_file(held, folder / "heads.safetensors")
    together = torch.tensor(scores_of(loaded(), pictures))
    assert torch.allclose(together, torch.tensor(said).mean(0), atol=1e-4)

    tokens = Tokens(torch.randn(1, WIDTH), torch.randn(1, 5, WIDTH))
    one = weights("attentive", queries=1)
    share = (tokens.patches[0] @ one["attentive.queries"][0] / WIDTH**0.5).softmax(0)
    by_hand = (share @ tokens.patches[0]) @ one["attentive.weight"] + one["attentive.bias"]
    assert torch.allclose(Heads(one, WIDTH, "cpu").score(tokens), by_hand, atol=1e-5)


def test_rows_of_one_backbone_share_it_and_its_pass(folder: Path) -> None:
    """Two rows with heads of their own, in one panel: loaded once, run once for the same photos, again for others."""
    save_file(weights("cls"), folder / "heads.safetensors")
    save_file(weights("mean"), folder / "other.safetensors")
    engines = [loaded(), loaded(ALONE, options={"heads": "other.safetensors"})]
    shared = engines[0]._backbone
    assert shared is engines[1]._backbone
    passes: list[int] = []
    shared.model.register_forward_hook(lambda *_: passes.append(1))
    panel = Panel("look", [Member(ROW, engine) for engine in engines])
    first, second = ([panel.prepare(photo, STILL) for photo in photos(4, seed)] for seed in (1, 2))
    scores = panel.score(first)
    assert len(passes) == 1
    assert all(one != other for one, other in scores)
    panel.score(second)
    assert len(passes) == 2
    # Nothing of the photos before is left in the scores.
    assert panel.score(first) == scores
    assert len(passes) == 3


def test_a_backbone_goes_with_its_last_row(folder: Path) -> None:
    """It is held by the rows that use it and by nothing else."""
    save_file(weights("cls"), folder / "heads.safetensors")
    engine = loaded()
    assert backbone(ROW, Runtime(max_batch=4), folder) is engine._backbone
    assert backbone(ROW, Runtime(max_batch=4, precision="bf16"), folder) is not engine._backbone
    gone = weakref.ref(engine._backbone)
    del engine
    gc.collect()
    assert gone() is None


def test_a_backbone_without_heads_abstains(folder: Path) -> None:
    """The row has none, or they are not there yet: it loads, and no photo reaches the backbone."""
    for engine in (loaded(ALONE), loaded()):
        passes: list[int] = []
        engine._backbone.model.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        panel = Panel("look", [Member(ROW, engine)])
        assert panel.score([panel.prepare(photo, STILL) for photo in photos(2)]) == [(None,), (None,)]
        assert passes == []
    assert not (folder / "heads.safetensors").exists()


@pytest.mark.parametrize(
    ("held", "changes", "says"),
    [
        (weights("cls", width=16), {}, r"cls.weight is \(16,\), not \(32,\)"),
        ({"cls.weight": torch.zeros(WIDTH)}, {}, "not those of cls, mean and attentive heads: cls.bias"),
        ({"crown.weight": torch.zeros(WIDTH)}, {}, "heads: crown.weight"),
        (weights("cls"), {"input_px": 60}, "input_px = 60 is no multiple of its patches' 16 px"),
    ],
)
def test_what_does_not_fit_is_said(
    folder: Path, held: dict[str, torch.Tensor], changes: dict[str, Any], says: str
) -> None:
    """Heads of another backbone, or no heads, are refused at load."""
    save_file(held, folder / "heads.safetensors")
    with pytest.raises(ConfigError, match=says):
        loaded(**changes)


def test_damaged_heads(folder: Path) -> None:
    """A file that is no safetensors is one clear line."""
    (folder / "heads.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="its weights cannot be loaded"):
        loaded()
