"""AnomalyCLIP: its weights' two formats, and what it says where its library is not to be had."""

import math
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import ConfigError
from tests.engines.checkpoints import Shelf, engine_of, photos, spec_of
from tests.engines.contract import holds
from workers.engines import Runtime, Shot, build
from workers.engines.anomalyclip import CHECKOUT_VARIABLE, CLIP_FILE, DESIGN, PROMPTS_FILE, state_of


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_weights_as_script_or_dictionary(tmp_path: Path) -> None:
    """The same weights come out of either kind of file; one that is neither is refused."""
    layer = torch.nn.Linear(3, 2)
    torch.jit.script(layer).save(tmp_path / "script.pt")
    torch.save(layer.state_dict(), tmp_path / "plain.pt")
    for name in ("script.pt", "plain.pt"):
        state = state_of(tmp_path / name)
        assert set(state) == {"weight", "bias"}
        assert torch.equal(state["weight"], layer.weight)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(zipfile.BadZipFile):
        state_of(tmp_path / "broken.pt")


def test_without_a_clone_it_says_what_to_do(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, unset or naming something else, is named in one line."""
    shelf.put("anomalyclip")
    monkeypatch.delenv(CHECKOUT_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=f"clone github.com/zqhang/AnomalyCLIP and set {CHECKOUT_VARIABLE}"):
        engine_of("anomalyclip")
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(shelf.put("elsewhere")))
    with pytest.raises(ConfigError, match=f"set {CHECKOUT_VARIABLE}"):
        engine_of("anomalyclip")


def test_what_the_clone_needs_is_named(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that the clone imports and that is not installed is named with the way to install it."""
    shelf.put("anomalyclip")
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "prompt_ensemble.py").write_text("import no_such_library\n")
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(clone))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "prompt_ensemble", raising=False)
    with pytest.raises(ConfigError, match="its library needs no_such_library: pip install ftfy"):
        engine_of("anomalyclip")


def test_a_photo_becomes_a_square() -> None:
    """At the size that the prompts were learnt at, whatever its shape."""
    engine = build(spec_of("anomalyclip"), Runtime())
    for photo in photos(3):
        assert engine.prepare(photo, Shot()).shape == (518, 518, 3)


needs_clone = pytest.mark.skipif(CHECKOUT_VARIABLE not in os.environ, reason=f"{CHECKOUT_VARIABLE} names no clone")


@needs_clone
@pytest.mark.filterwarnings("ignore:pkg_resources is deprecated:UserWarning")
def test_photos_are_scored(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clone's own classes, small and at random weights, saved as the published ones are."""
    monkeypatch.syspath_prepend(os.environ[CHECKOUT_VARIABLE])
    from AnomalyCLIP_lib.AnomalyCLIP import AnomalyCLIP
    from prompt_ensemble import AnomalyCLIP_PromptLearner

    torch.manual_seed(0)
    # 24 blocks as in the large one, since the attention of the last 20 is replaced; words as CLIP has them.
    sizes: list[Any] = [64, 56, 24, 64, 14, 77, 49408, 64, 1, 4]
    clip = AnomalyCLIP(*sizes, design_details=DESIGN)
    folder = shelf.put("anomalyclip")
    torch.save(clip.state_dict(), folder / CLIP_FILE)
    torch.save({"prompt_learner": AnomalyCLIP_PromptLearner(clip, DESIGN).state_dict()}, folder / PROMPTS_FILE)
    scores = holds(engine_of("anomalyclip", input_px=70))
    assert len(set(scores)) == len(scores)
    assert all(math.isfinite(score) for score in scores if score is not None)
