"""Writes the list of files in docs/architecture.md: python -m ops.files_doc.

A Python file is listed by the first sentence of its docstring, and so is a folder that is a package. What is said of
all others is written in the list by hand, and kept.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

from configs.errors import ConfigError
from routing.command import run_command

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"

BEGIN, END = "Made by python -m ops.files_doc.\n\n```\n", "```\n"
#: Column of what is said of a file.
_COLUMN = 26


def rendered(page: str) -> str:
    """The page with the list as the files are now.

    Args:
        page: its text.

    Raises:
        ConfigError: nothing is said of a file.
    """
    head, _, rest = page.partition(BEGIN)
    listed, _, tail = rest.partition(END)
    lines = "".join(f"{line}\n" for line in _lines(listed))
    return f"{head}{BEGIN}{lines}{END}{tail}"


def _lines(listed: str) -> Iterator[str]:
    """The list, folders in the order that they had, files by name."""
    said, folders = _said(listed)
    by_folder: dict[str, list[str]] = {"": []}
    for path in _tracked():
        folder, _, name = path.rpartition("/")
        by_folder.setdefault(f"{folder}/" if folder else "", []).append(name)
    for folder in sorted(by_folder, key=lambda one: (folders.index(one) if one in folders else len(folders), one)):
        if folder:
            about = _docstring(ROOT / folder / "__init__.py") or said.get(folder, "")
            yield f"{folder:<{_COLUMN - 2}}  {about}".rstrip()
        for name in sorted(set(by_folder[folder]) - {"__init__.py"}):
            about = _docstring(ROOT / folder / name) or said.get(folder + name, "")
            if not about:
                raise ConfigError(f"docs/architecture.md says nothing of {folder}{name}: add a line to its list")
            place = f"  {name}" if folder else name
            yield f"{place:<{_COLUMN - 2}}  {about}"


def _said(listed: str) -> tuple[dict[str, str], list[str]]:
    """What the list says of each file and folder, and its folders in order."""
    said, folders = {}, [""]
    for line in listed.splitlines():
        name, _, about = line.strip().partition(" ")
        if name.endswith("/"):
            folders.append(name)
            said[name] = about.strip()
        else:
            said[(folders[-1] if line.startswith(" ") else "") + name] = about.strip()
    return said, folders


def _tracked() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - no input
    return [path for path in listed.splitlines() if (ROOT / path).exists()]


def _docstring(path: Path) -> str:
    """The first sentence of a Python file's docstring, up to the end of its first line; empty: it has none."""
    if path.suffix != ".py" or not path.exists():
        return ""
    first, _, _ = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")
    return first.partition(". ")[0].rstrip(".")


@click.command()
def main() -> None:
    """Writes the list of files in docs/architecture.md."""
    PAGE.write_text(rendered(PAGE.read_text()))


if __name__ == "__main__":
    run_command(main, "python -m ops.files_doc")
