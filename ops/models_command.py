"""natix-fleet models and its commands; each body is a call, as in ops.cli."""

from pathlib import Path

import click

from configs.errors import UsageError


@click.group(invoke_without_command=True)
@click.option("--level", type=click.IntRange(0, 6), help="Only this one: 0 foundation to 6 consensus.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def models(context: click.Context, level: int | None, as_json: bool) -> None:
    """Every model of the catalogue: what runs, what stands in for what, and why."""
    if context.invoked_subcommand:
        if level is not None or as_json:
            raise UsageError(f"--level and --json are of the list, not of {context.invoked_subcommand}")
        return
    from ops.models import print_models  # noqa: PLC0415 - a command imports what it needs

    print_models(level, as_json=as_json)


@models.command("check")
@click.argument("key")
@click.option("--photo", type=click.Path(path_type=Path), help="[default: a drawn scene with roadwork]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda:INDEX or cuda:GPU-UUID.")
def check_model(key: str, photo: Path | None, device: str) -> None:
    """Really loads the model KEY and asks it about a photo, or says what is missing."""
    from ops.model_check import check  # noqa: PLC0415 - a command imports what it needs

    check(key, photo, device)


@models.command("fetch")
@click.argument("key")
def fetch_model(key: str) -> None:
    """Downloads the weights of the model KEY from the hub into its cache."""
    from ops.model_fetch import print_fetched  # noqa: PLC0415 - a command imports what it needs

    print_fetched(key)
