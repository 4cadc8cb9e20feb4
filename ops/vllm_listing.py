"""natix-fleet vllm commands: the exact command of each server, for people to copy and for machines."""

import shlex

import click
import msgspec

from configs.errors import ConfigError, UsageError
from configs.profile import load_profile
from ops.vllm_children import no_servers, served_tiers
from ops.vllm_releases import NEWEST, RELEASES
from ops.vllm_server import ServerCommand, catalogue_commands, server_command, vllm_python


def print_commands(profile_name: str | None, release: str, *, as_json: bool) -> None:
    """Prints them.

    Args:
        profile_name: whose tiers; None: each VLM of the catalogue.
        release: of vLLM; empty: the newest that the fleet knows.
        as_json: {key: argv}; of a profile with a model in two tiers the key is MODEL:TIER.

    Raises:
        UsageError: the release is not known.
        ConfigError: as server_command; or the fleet starts no server for the profile.
    """
    release = release or NEWEST
    if release not in RELEASES:
        raise UsageError(f"--release {release}: the fleet knows {', '.join(RELEASES)}")
    found = commands_of(profile_name, release) if profile_name is not None else catalogue_commands(release, _python())
    if as_json:
        argvs = {key: one.argv for key, one in found.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(argvs), indent=2).decode())
        return
    for one in found.values():
        click.echo(shell_line(one))


def commands_of(profile_name: str, release: str) -> dict[str, ServerCommand]:
    """The commands of the servers that the fleet starts for a profile."""
    profile = load_profile(profile_name)
    models = profile.models()
    tiers = served_tiers(profile)
    if not tiers:
        raise no_servers(profile)
    keys = [models[tier.name][0].key for tier in tiers]
    return {
        key if keys.count(key) == 1 else f"{key}:{tier.name}": server_command(profile, tier, release, _python())
        for key, tier in zip(keys, tiers, strict=True)
    }


def shell_line(command: ServerCommand) -> str:
    """As a shell takes it: the environment first."""
    return shlex.join(["env", *(f"{name}={value}" for name, value in command.env.items()), *command.argv])


def _python() -> str:
    """Commands can be read where vLLM is not."""
    try:
        return vllm_python()
    except ConfigError:
        return "python"
