"""These tests need vLLM in an environment of its own: make test-vllm makes it, and names it by NATIX_FLEET_PYTHON_VLLM.

make unit runs without them. make test-vllm fails, never skips, where that environment or what its processor must have
is missing.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.real_server import real_server

ROOT = Path(__file__).parents[2]
#: The model's name on the session's server; a row of the catalogue.
NAME = "qwen3-vl-4b-instruct"

if "NATIX_FLEET_PYTHON_VLLM" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter that has vLLM."""
    return os.environ["NATIX_FLEET_PYTHON_VLLM"]


@pytest.fixture(scope="session")
def tiny(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, under the row's key, so that its parent may be NATIX_FLEET_WEIGHTS."""
    folder = tmp_path_factory.mktemp("weights") / NAME
    command = [python, str(ROOT / "tests/vllm/tiny_checkpoint.py"), str(folder)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def vlm_url(python: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of the tiny checkpoint, for the whole session: nobody may kill it."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with real_server(python, tiny, NAME, log) as url:
        yield url
