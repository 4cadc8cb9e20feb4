"""These tests need the libraries of the engines: make test-engines has them in an environment of its own."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.engines.checkpoints import Shelf

if find_spec("torch") is None:
    # make unit runs without; make test-engines fails with "no tests ran" if it is ever so there.
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Where a test puts checkpoints."""
    return Shelf(tmp_path, monkeypatch)
