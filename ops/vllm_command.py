"""natix-fleet vllm and its commands; each body is a call, as in ops.cli."""

import sys

import click

profile_option = click.option(
    "--profile", "profile_name", required=True, help="Name of a profile in configs/, or a path to a .toml."
)


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


@vllm.command("start")
@profile_option
@click.pass_context
def start(context: click.Context, profile_name: str) -> None:
    """Starts the profile's servers and looks after them until Ctrl-C; `up` and `run` then use them."""
    from routing.logs import configure_logging  # noqa: PLC0415 - same

    if not context.find_root().params.get("log_level"):
        # A long-lived process: its log is its face, as `up`'s is.
        configure_logging("vllm", "info", json=not sys.stderr.isatty())
    from ops.vllm_start import start as start_servers  # noqa: PLC0415 - same

    start_servers(profile_name)


@vllm.command("stop")
@click.option("--profile", "profile_name", help="Only if they are this one's.")
def stop(profile_name: str | None) -> None:
    """Ends the servers that `vllm start` runs here, and waits for it."""
    from ops.vllm_start import stop as stop_servers  # noqa: PLC0415 - same

    stop_servers(profile_name)


@vllm.command("status")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@profile_option
def status(as_json: bool, profile_name: str) -> None:
    """Each server: healthy, asleep, its requests, its caches. Exit status 0: all are healthy, 69: one is not."""
    from configs.profile import load_profile  # noqa: PLC0415 - same
    from ops.vllm_status import print_servers  # noqa: PLC0415 - same

    print_servers(load_profile(profile_name), as_json=as_json)
