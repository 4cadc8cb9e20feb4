"""The audit of packages: what it says of pip-audit's own reports, kept as that tool wrote them."""

import subprocess
import sys
from pathlib import Path

import pytest

from ops.audit_packages import outcome

REPORTS = Path(__file__).parent / "pip_audit"


@pytest.mark.parametrize(
    ("report", "status", "lines"),
    [
        ("clean", 0, ["audited 2 of 2 packages"]),
        ("found", 1, ["audited 2 of 2 packages", "jinja2 2.4.1: PYSEC-2019-217, fixed in 2.10.1"]),
    ],
)
def test_what_was_found(report: str, status: int, lines: list[str]) -> None:
    """How many packages were audited, and each finding with its remedy; findings end with 1."""
    assert outcome((REPORTS / f"{report}.json").read_bytes(), "") == (lines, status)


def test_a_package_that_was_passed_over_is_not_clean() -> None:
    """pip-audit ends with 0 where it could look up nothing; here that is 69, and only this project is excused."""
    lines, status = outcome((REPORTS / "missed.json").read_bytes(), "No known vulnerabilities found")
    assert lines[0] == "audited 0 of 1 packages"
    assert lines[1].startswith("not audited: Dependency not found on PyPI")
    assert "click" in lines[1]
    assert status == 69


def test_findings_go_before_gaps() -> None:
    """Where something was found and something was passed over, both are said, and the finding decides."""
    cut = (REPORTS / "found.json").read_bytes().rpartition(b"], ")[0]
    missed = (REPORTS / "missed.json").read_bytes().partition(b"[")[2]
    lines, status = outcome(cut + b", " + missed, "")
    assert [line.partition(":")[0] for line in lines] == ["audited 2 of 3 packages", "jinja2 2.4.1", "not audited"]
    assert status == 1


@pytest.mark.parametrize("report", [b"", b'{"dependencies": [', b"[]", b'{"dependencies": []}'])
def test_no_report_is_not_clean(report: bytes) -> None:
    """No report, half of one, another form, or one of no package: not audited."""
    lines, status = outcome(report, "first\nConnectionError: no route\n")
    assert lines[-1].startswith("not audited: ")
    assert status == 69


def test_a_service_that_is_away() -> None:
    """The command itself, with a service that nobody answers for, says that nothing was audited, and why."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.audit_packages", "--", "-s", "osv", "--osv-url", "http://127.0.0.1:9/"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69
    assert done.stdout.startswith("not audited: ")
    assert "clean" not in done.stdout
