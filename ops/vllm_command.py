"""natix-fleet vllm and its commands; each body is a call, as in ops.cli."""

import click


@click.group()
def vllm() -> None:
    """The servers of vision-language models."""


@vllm.command("commands")
@click.option("--profile", "profile_name", help="Its tiers' servers; without it each VLM of the catalogue.")
@click.option("--release", default="", help="Of vLLM: 0.32.0 or 0.22.1.  [default: 0.32.0]")
@click.option("--json", "as_json", is_flag=True, help="{key: argv}, for machines.")
def commands(profile_name: str | None, release: str, as_json: bool) -> None:
    """The exact command of each server, one a line, as a shell takes it."""
    from ops.vllm_listing import print_commands  # noqa: PLC0415 - a command imports what it needs

    print_commands(profile_name, release, as_json=as_json)
