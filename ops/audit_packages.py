"""Audits the installed packages for known vulnerabilities, and never calls clean what was not audited: make audit.

pip-audit says "no known vulnerabilities", with status 0, also where it could look up nothing: so its report is read.
"""

import subprocess
import sys

import click
import msgspec
from msgspec import Struct

from configs.errors import ServerError

#: This project is on no index.
_OURS = "natix-fleet"


class Advisory(Struct):
    """A known vulnerability of a package."""

    id: str
    fix_versions: list[str] = []


class Package(Struct):
    """An installed package: its advisories, or why there are none to be had."""

    name: str
    version: str = ""
    vulns: list[Advisory] = []
    skip_reason: str = ""


class Audited(Struct):
    """pip-audit's report."""

    dependencies: list[Package]


def outcome(report: bytes, complaint: str) -> tuple[list[str], int]:
    """What to print and the exit status: 0 everything audited and clean, 1 findings, 69 something was not audited.

    Args:
        report: pip-audit's JSON; empty or cut when it gave up.
        complaint: its standard error.
    """
    try:
        packages = [p for p in msgspec.json.decode(report, type=Audited).dependencies if p.name != _OURS]
    except msgspec.DecodeError:
        cause = (complaint.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return [f"not audited: {cause}"], ServerError.exit_status
    missed = [package for package in packages if package.skip_reason]
    found = [
        f"{package.name} {package.version}: {advisory.id}, fixed in {', '.join(advisory.fix_versions) or 'none yet'}"
        for package in packages
        for advisory in package.vulns
    ]
    lines = [f"audited {len(packages) - len(missed)} of {len(packages)} packages", *found]
    if missed or not packages:
        names = ", ".join(package.name for package in missed)
        lines.append(f"not audited: {missed[0].skip_reason if missed else 'no package'} (all: {names})")
    return lines, 1 if found else ServerError.exit_status if missed or not packages else 0


@click.command()
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(options: tuple[str, ...]) -> None:
    """Audits this environment; OPTIONS go to pip-audit, after --."""
    done = subprocess.run(  # noqa: S603 - a tool of this very environment
        [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", *options],
        capture_output=True,
        check=False,
    )
    lines, status = outcome(done.stdout, done.stderr.decode(errors="replace"))
    click.echo("\n".join(lines))
    sys.exit(status)


if __name__ == "__main__":
    main()
