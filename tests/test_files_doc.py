"""The list of files in docs/architecture.md."""

import pytest

from configs.errors import ConfigError
from ops.files_doc import PAGE, rendered


def test_the_list_is_of_the_files_that_there_are() -> None:
    """Each with what its docstring begins with."""
    page = PAGE.read_text()
    assert rendered(page) == page, "run: python -m ops.files_doc"


def test_a_file_that_says_nothing_of_itself_wants_a_line() -> None:
    """It is named; what was said by hand of others stays."""
    page = PAGE.read_text()
    with pytest.raises(ConfigError, match="says nothing of LICENSE: add a line"):
        rendered(page.replace("LICENSE  ", "LICENCE  "))
    assert "LICENSE                   of the project" in rendered(page.replace("Apache-2.0\n", "of the project\n"))
