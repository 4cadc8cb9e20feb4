"""natix-fleet quantize and the process that it starts: how each of them ends, what the other gets, what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.test_quantize import KEY, LAYER, NOTER, ROOT, checkpoint

#: In place of the interpreter that has llm-compressor: its own pid and half a checkpoint, in the folder that --out is.
HALF = """#!{python}
import os, pathlib, sys, time
if sys.argv[1] == "-c":
    sys.exit()  # asked whether it has llm-compressor
folder = pathlib.Path(os.environ["HERE"])
(folder / "out").mkdir(exist_ok=True)
(folder / "out/model.safetensors").write_text("half")
print("as it goes", flush=True)
(folder / "pid.part").write_text(str(os.getpid()))
(folder / "pid.part").rename(folder / "pid")
time.sleep(600)
"""
#: Likewise, but it is done and compares.
WHOLE = HALF.replace('"half"', '"whole"').replace(
    "print(", 'os.write(int(sys.argv[-1]), b\'{{"written_by": "1", "before": [0.5]}}\\n\')\nprint('
)
#: The libraries of that interpreter, as far as ops.quantize_apart calls them. A model named by TOO_LARGE does not fit.
LIBRARIES = {
    "compressed_tensors.py": '__version__ = "1"\n',
    "llmcompressor/__init__.py": """
import pathlib
def oneshot(**_): ...
def model_free_ptq(checkpoint, out, **_):
    print("quantising")
    (pathlib.Path(out) / "model.safetensors").write_text("whole")
""",
    "llmcompressor/modifiers/__init__.py": "",
    "llmcompressor/modifiers/gptq.py": "GPTQModifier = None\n",
    "torch/__init__.py": """
from contextlib import nullcontext as inference_mode
from types import SimpleNamespace
cuda = SimpleNamespace(is_available=lambda: False, empty_cache=lambda: None)
logsumexp = lambda *_: 0.0
sigmoid = lambda _: 0.5
class OutOfMemoryError(RuntimeError): ...
""",
    "torch/utils/__init__.py": "",
    "torch/utils/data.py": "DataLoader = None\n",
    "transformers.py": """
import os, pathlib
from torch import OutOfMemoryError
class Anything:
    __getattr__ = __getitem__ = __call__ = lambda self, *_, **__: self
    __iter__ = lambda _: iter(())
    __len__ = lambda _: 1
class AutoProcessor:
    from_pretrained = Anything()
class AutoModelForImageTextToText:
    def from_pretrained(folder, **_):
        if pathlib.Path(folder).name == os.environ["TOO_LARGE"]:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return Anything()
""",
}


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Whoever started the tests may have had signals ignored, as nohup does; their children would inherit it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a checkpoint that can be quantised, and one photo."""
    checkpoint(tmp_path / "weights" / KEY, {LAYER: ("BF16", (2, 128))})
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/a.jpg")
    return tmp_path


def stand_in(folder: Path, program: str) -> str:
    path = folder / "interpreter"
    path.write_text(program.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


@contextmanager
def started(
    folder: Path, python: str, *arguments: str, before: tuple[str, ...] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """The command, of photos in fp8."""
    known = {
        "PYTHONPATH": str(ROOT),
        "HERE": str(folder),
        "NATIX_FLEET_WEIGHTS": str(folder / "weights"),
        "NATIX_FLEET_PYTHON_QUANTIZE": python,
    }
    command = [*before, sys.executable, "-m", "ops.cli", "quantize", KEY, "--precision", "fp8", "--out", "out"]
    with subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=os.environ | known | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(folder: Path, python: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    with started(folder, python, *arguments, before=(), **environment) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def child_of(folder: Path) -> Iterator[int]:
    """The stand-in's pid, once it has written; it does not outlive the test."""
    wait_until((folder / "pid").exists)
    pid = int((folder / "pid").read_text())
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_gone(pid: int) -> bool:
    try:
        # Whoever adopts an orphan may take a while to bury it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_both_and_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    """A service's stop, a closed ssh, a Ctrl-C: hours on a GPU for nobody, and half a checkpoint, must not stay."""
    with started(folder, stand_in(folder, HALF)) as process, child_of(folder) as child:
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert is_gone(child)
        assert not (folder / "out").exists()


def test_a_second_signal_does_not_break_the_first_off(folder: Path) -> None:
    """A service manager sends SIGTERM and SIGHUP at once."""
    with started(folder, stand_in(folder, HALF)) as process, child_of(folder) as child:
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGHUP)
        assert process.wait(20) in {128 + signal.SIGTERM, 128 + signal.SIGHUP}
        assert is_gone(child)
        assert not (folder / "out").exists()


def test_a_command_under_nohup_outlives_its_terminal(folder: Path) -> None:
    """Who asked for it gets it."""
    with started(folder, stand_in(folder, HALF), before=("nohup",)) as process, child_of(folder):
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM


def test_a_killed_command_takes_its_child_along(folder: Path) -> None:
    """Nothing can be cleared away then, but the GPU is free."""
    with started(folder, stand_in(folder, HALF)) as process, child_of(folder) as child:
        process.kill()
        wait_until(lambda: is_gone(child))


def test_a_signal_while_it_compares_leaves_the_checkpoint(folder: Path) -> None:
    """It is whole by then, and hours old."""
    with started(folder, stand_in(folder, WHOLE), "--photos", "photos") as process, child_of(folder) as child:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert is_gone(child)
        assert (folder / "out/model.safetensors").read_text() == "whole"


def test_an_interpreter_without_llm_compressor_is_named(folder: Path) -> None:
    """As a wrong configuration, with what makes the right one; nothing was begun."""
    status, _, said = run(folder, sys.executable)
    assert status == 78, said
    assert f"{sys.executable} has no llm-compressor: make .venv-quantize/stamp" in said
    assert not (folder / "out.log").exists()


def test_any_number_of_photos(folder: Path) -> None:
    """One argument of a command is 128 KiB on Linux: 2,000 paths are more."""
    photos = folder / "photos" / ("a" * 90)
    photos.mkdir()
    for number in range(2000):
        (photos / f"{number}.jpg").touch()
    arguments = ("--precision", "int4", "--samples", "2000", "--photos", str(photos))
    status, _, said = run(folder, stand_in(folder, NOTER), *arguments)
    assert status == 0, said
    order = json.loads((folder / "out/order.json").read_text())
    assert len(order["calibration"]) == 2000
    assert len(json.dumps(order)) > 128 << 10


@pytest.mark.parametrize("out", [".", "here/..", "weights", "photos/a.jpg"])
def test_a_place_that_is_taken_is_refused_in_one_line(folder: Path, out: str) -> None:
    """The folder that one is in among them."""
    (folder / "here").mkdir()
    status, _, said = run(folder, stand_in(folder, NOTER), "--out", out)
    assert (status, said.count("\n")) == (64, 1), said
    assert said.startswith("error: --out "), said


def test_the_folder_that_one_is_in_is_refused_though_it_is_empty(folder: Path) -> None:
    """It would go with the first failure."""
    (folder / "in").mkdir()
    weights = str(folder / "weights")
    python = stand_in(folder, NOTER)
    status, _, said = run(folder / "in", python, "--out", ".", NATIX_FLEET_WEIGHTS=weights)
    assert (status, said.count("\n")) == (64, 1), said
    assert "is the folder that you are in" in said


def libraries(folder: Path) -> str:
    """PYTHONPATH with stand-ins for what ops.quantize_apart imports."""
    for name, text in LIBRARIES.items():
        path = folder / "libraries" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return f"{folder / 'libraries'}:{ROOT}"


def test_a_model_that_cannot_be_compared_is_not_quantised(folder: Path) -> None:
    """What the comparison needs of the old checkpoint is asked for before hours go by."""
    environment = {"PYTHONPATH": libraries(folder), "TOO_LARGE": KEY}
    status, _, said = run(folder, sys.executable, "--photos", "photos", **environment)
    assert status == 70, said
    assert "leave --photos out" in said
    assert "quantising" not in (folder / "out.log").read_text()
    assert not (folder / "out").exists()


def test_a_checkpoint_that_cannot_be_compared_stays(folder: Path) -> None:
    """It is whole: the comparison is beside it."""
    environment = {"PYTHONPATH": libraries(folder), "TOO_LARGE": "out"}
    status, found, said = run(folder, sys.executable, "--photos", "photos", **environment)
    assert status == 70, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"{folder}/out is whole and stays" in line
    assert "CUDA out of memory" in line
    assert "out.log" in line
    assert said.endswith(f"{line}\n")
    assert "compressed-tensors 1" in found
    assert (folder / "out/model.safetensors").read_text() == "whole"


def test_a_checkpoint_that_can_be_compared(folder: Path) -> None:
    """With the same stand-ins, so that it is the model's size that the two above are about."""
    environment = {"PYTHONPATH": libraries(folder), "TOO_LARGE": "another"}
    status, found, said = run(folder, sys.executable, "--photos", "photos", **environment)
    assert status == 0, said
    assert "largest change of the raw P(roadwork) on 1 photos: 0.0000" in found
    assert (folder / "out.log").read_text() == "quantising\n"


def test_logins_stay_here(folder: Path) -> None:
    """A checkpoint may bring code of its own."""
    logins = {name: f"{name}-secret" for name in ("REDIS_URL", "NATIX_FLEET_VLM_KEY", "HF_TOKEN")}
    status, _, said = run(folder, stand_in(folder, NOTER), **logins)
    assert status == 0, said
    environment = json.loads((folder / "out/environment.json").read_text())
    assert not set(logins) & set(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
