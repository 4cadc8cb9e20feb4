"""No password in an error line or a traceback, and nothing in the tree that turns bytes into running code."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.server import EmbeddedServer

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for name in ("configs", "routing", "producers", "workers", "ops") for path in (ROOT / name).rglob("*.py")
)
SECRET = "s3cret-Znq"  # noqa: S105
#: Modules that turn bytes into live objects, code with them.
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve"}


LOGIN_REFUSED = """
import sys, redis, structlog
from routing.logs import configure_logging
port, secret, form = sys.argv[1:]
configure_logging("test", json=form == "json")
try:
    redis.Redis(port=int(port), username="fleet", password=secret, retry=None).ping()
except redis.exceptions.AuthenticationError:
    structlog.get_logger().exception("refused")
"""


@pytest.mark.parametrize("form", ["json", "plain"])
def test_a_traceback_tells_no_password(server: EmbeddedServer, form: str) -> None:
    """A traceback names files and functions, and shows no local variable: redis-py holds its login in one."""
    done = subprocess.run(
        [sys.executable, "-c", LOGIN_REFUSED, str(server.port), SECRET, form],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "on_connect" in done.stderr
    assert "AuthenticationError" in done.stderr
    assert SECRET not in done.stderr


def test_an_error_line_tells_no_password(server: EmbeddedServer, tmp_path: Path) -> None:
    """With a login that the server refuses and a database that cannot be used, each command ends without a password."""
    statuses = {
        ("collector",): 78,
        ("status",): 69,
        ("feed", "rendered:1"): 69,
    }
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": f"redis://fleet:{SECRET}@127.0.0.1:{server.port}/0",
        "NATIX_FLEET_DATABASE": f"postgresql+absent://u:{SECRET}@127.0.0.1:1/x?password={SECRET}",
    }
    commands = {
        arguments: subprocess.Popen(
            [sys.executable, "-m", "ops.cli", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments in statuses
    }
    for arguments, command in commands.items():
        said, _ = command.communicate(timeout=60)
        assert command.returncode == statuses[arguments], said
        assert said
        assert SECRET not in said


def imported(tree: ast.AST) -> set[str]:
    """The top-level names of all modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Calls that unpickle or execute what they read, unless they say that they do not."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe = {
            "torch.load": given.get("weights_only") != "True",
            "np.load": given.get("allow_pickle", "False") != "False",
            "numpy.load": given.get("allow_pickle", "False") != "False",
            "yaml.load": True,
            "eval": True,
            "exec": True,
        }
        if unsafe.get(called):
            found.append(f"{called} in line {node.lineno}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    """No file imports a pickle of any kind, and what loads weights or arrays loads nothing else."""
    tree = ast.parse(path.read_text())
    assert not imported(tree) & UNPICKLERS
    assert not unsafe_calls(tree)


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_an_unsafe_call_is_seen(text: str) -> None:
    """The check above can fail."""
    assert unsafe_calls(ast.parse(text))
    assert imported(ast.parse("def f():\n    from pickle import loads")) & UNPICKLERS
