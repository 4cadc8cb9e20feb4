"""Rules of the tree that no linter knows."""

import importlib
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "routing", "producers", "workers", "ops")
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
GRAB_BAGS = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base", "core"}


@pytest.mark.parametrize("name", PACKAGES)
def test_our_top_level_names_are_ours(name: str) -> None:
    """No installed distribution owns one of our import names."""
    assert set(packages_distributions().get(name, [])) <= {"natix-fleet"}
    assert Path(str(importlib.import_module(name).__file__)).is_relative_to(ROOT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_shadows_another_module(path: Path) -> None:
    """`python producers/natix.py` puts producers/ on the path: no file may be called like somebody else's module."""
    taken = (sys.stdlib_module_names | set(packages_distributions())) - set(PACKAGES)
    if path.parent.name == "producers":
        assert path.stem.startswith("__") or path.stem not in taken


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_have_one_job(path: Path) -> None:
    """No grab bags, and no file that outgrew its job."""
    assert path.stem not in GRAB_BAGS
    limit = 400 if path.name == "ledger.py" else 300
    assert len(path.read_text().splitlines()) <= limit


def test_the_producer_runs_from_anywhere(tmp_path: Path) -> None:
    """python producers/natix.py --help works from another directory."""
    done = subprocess.run(
        [sys.executable, ROOT / "producers/natix.py", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--linger-ms" in done.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("producers.natix", ("torch", "onnxruntime", "workers", "sqlalchemy", "pyarrow")),
        ("ops.cli", ("torch", "onnxruntime", "sqlalchemy", "pyarrow", "celery")),
        ("ops.status", ("torch", "onnxruntime", "pyarrow", "PIL")),
        ("configs.profile", ("celery", "redis", "PIL")),
    ],
)
def test_light_imports(module: str, absent: tuple[str, ...]) -> None:
    """A command imports what it needs and no more."""
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
