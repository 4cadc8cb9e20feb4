"""The kvpress engine (row qwen3-vl-4b-kvpress): real presses on a real Qwen3-VL of random weights, apart.

Mechanism only: no weights here know what roadwork is.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.model import load_model
from configs.serving import Server
from tests.engines.checkpoints import photos, spec_of
from tests.engines.contract import holds
from workers.engines import DETECTORS, Runtime, apart, build
from workers.weights import WEIGHTS_VARIABLE

ROOT = Path(__file__).parents[2]
KEY = "qwen3-vl-4b-kvpress"
#: Random weights say other words than yes and no.
ANY = Server(max_outside=1.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the checkpoint under the row's key, named to whoever looks for weights."""
    root = tmp_path_factory.mktemp("kvpress")
    python = os.environ["NATIX_FLEET_PYTHON_KVPRESS"]
    command = [python, str(ROOT / "tests/vllm/tiny_checkpoint.py"), str(root / KEY)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WEIGHTS_VARIABLE, str(root))
        # Two interpreters on the cores of one: their threads would wait for each other.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield root


@pytest.fixture(scope="module")
def seen(weights: Path) -> Any:
    """What the probe found."""
    out = weights / "probe.json"
    command = [os.environ["NATIX_FLEET_PYTHON_KVPRESS"], str(ROOT / "tests/vllm/kvpress_probe.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def test_it_is_not_taken_for_one_that_sees_boxes(seen: Any) -> None:
    """What tests/engines/test_fusion.py asks of the engines whose libraries are there."""
    assert seen["sees_boxes"] == (load_model(KEY).engine in DETECTORS)


def test_without_a_press_it_is_the_model(seen: Any) -> None:
    """A photo read first and the question after it say what one pass over both says; so does a share of 0."""
    assert seen["base"] == pytest.approx(seen["one_shot"], abs=1e-4)
    assert seen["ratio_0"] == pytest.approx(seen["one_shot"], abs=1e-4)


def test_every_press_shortens_the_cache_and_moves_p(seen: Any) -> None:
    """Each that is offered leaves fewer tokens, and what it dropped is missed: P differs, and by the same each time."""
    for name, found in seen["presses"].items():
        tokens, kept = found["tokens"], found["kept"]
        text = tokens - 220  # 640 x 360 px are 20 x 11 tokens
        assert max(kept) < tokens, name
        whole = tokens * len(kept)
        if found["image_only"]:
            assert set(kept) == {kept[0]}, name
            assert kept[0] == text + 110, name
        assert 0.3 < sum(kept) / whole < 0.6, (name, kept)
        before, after = found["bytes"]
        assert after / before == pytest.approx(sum(kept) / whole, abs=0.01), name
        assert abs(found["moved"]) > 1e-4, name
        if name not in {"random", "compactor", "leverage-score"}:  # they throw dice
            assert found["moved"] == pytest.approx(found["again"], abs=1e-5), name


def test_the_first_pass_knows_no_press(seen: Any) -> None:
    """To the last bit: whoever read P there would measure nothing."""
    assert seen["first_pass"] == 0.0


def test_questions_on_one_prefix_are_those_one_by_one(seen: Any) -> None:
    """Three questions of unlike length in one batch; the score is their mean."""
    assert seen["each"] == pytest.approx(seen["alone"], abs=1e-4)
    assert len({round(one, 4) for one in seen["each"]}) == 3
    assert seen["together"] == pytest.approx(sum(seen["alone"]) / 3, abs=1e-4)


def test_presses_read_queries_as_the_model_does(seen: Any) -> None:
    """The library alone forgets this model's norm of queries: what it works out is then not what the model attends."""
    found = seen["attention"]
    assert found["worked_out"] == pytest.approx(found["given"], abs=1e-5)
    assert abs(found["unmended"] - found["given"]) > 1e-4


def test_text_stays_where_only_image_tokens_go(seen: Any) -> None:
    """All marks before and behind the photo, in every head, and a quarter of the photo."""
    text = seen["text"]
    for head in text["still"]:
        photo = head[text["head"] : len(head) - text["tail"]]
        assert all(head[: text["head"]])
        assert all(head[len(head) - text["tail"] :])
        assert sum(photo) == len(photo) - int(0.75 * len(photo))


def test_the_future_begins_behind_the_photos_place(seen: Any) -> None:
    """A photo of 20 x 11 tokens takes 20 positions, not 220."""
    for found in seen["places"].values():
        assert found["begins"] == [found["position"]]
        assert found["position"] < found["tokens"] - 199


def test_the_library_has_no_press_that_is_not_known_of(seen: Any) -> None:
    """Every class is offered, or left out with a reason."""
    bases = {"BasePress", "ScorerPress"}
    theirs = {name.removesuffix("Press").lower() for name in seen["classes"] if name not in bases}
    ours = {name.replace("-", "") for name in (*seen["offered"], *seen["left_out"])}
    assert theirs == ours


@pytest.mark.parametrize(
    ("number", "says"),
    list(
        enumerate(
            [
                "from 0 to below 1, not 1",
                "from 0 to below 1, not -0.1",
                "compression_ratio is a number, not 'half'",
                "press 'snap' is none; there are block, cap, .*snapkv, streaming-llm, tova",
                "press 'adakv' is not offered: it masks tokens",
                "press 'pyramidkv' gives no numbers to another one",
                "press 'snapkv' has no argument window; it takes kernel_size, window_size",
                "press 'knorm' has no argument window_size; it takes none",
                "nothing is cut, so nobody reads option window_size",
                "press 'chunkkv' does not cut token by token .*image_only = false",
                "image_only is true or false, not 'yes'",
                "questions is a list of prompts",
                "prompt 'roadwork-0' cannot be read",
            ]
        )
    ),
)
def test_what_is_wrong_is_one_clear_line(seen: Any, number: int, says: str) -> None:
    """Of the model, and with what there is instead."""
    assert len(seen["wrong"]) == 13
    said = seen["wrong"][number]
    assert "\n" not in said
    assert re.search(says, said), said


def test_it_keeps_the_contract(weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As any engine, through its interpreter; what it cut is in the log."""
    engine = build(load_model(KEY), Runtime(max_batch=2, server=ANY))
    assert isinstance(engine, apart.Engine)
    assert weights.is_dir()
    engine.load()
    engine.warm_up()
    scores = holds(engine, photos(5))
    assert None not in scores
    assert len(set(scores)) == 5
    del engine
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("KV cache")]
    assert len(said) == 2
    assert said[0].startswith("KV cache, press expected-attention: 23 -> 15 tokens a layer, ")


@pytest.mark.usefixtures("weights")
def test_a_wrong_option_is_said_through_the_pipe() -> None:
    """The press is looked up there, and its error comes here as the same one line."""
    engine = build(spec_of(KEY, options={"press": "nothing"}), Runtime())
    with pytest.raises(ConfigError, match=r"press 'nothing' is none; there are block, cap") as caught:
        engine.load()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("weights")
def test_models_check_says_what_was_cut() -> None:
    """The command that shows the row's state."""
    command = [sys.executable, "-m", "ops.cli", "models", "check", KEY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "KV cache, press expected-attention: " in done.stderr
    assert KEY in done.stdout
