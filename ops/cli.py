"""natix-fleet: every command. Each body is a call; what it does stands in the file that it calls."""

import sys
from pathlib import Path
from typing import Literal

import click

from configs.errors import UsageError
from configs.profile import load_profile
from ops.models_command import models
from ops.quantize_command import quantize
from ops.vllm_command import vllm
from routing.command import run_command
from routing.logs import configure_logging

#: Statuses that commands end with, for --help.
STATUSES = (
    "Exit status: 0 done, 1 images lost or counted twice, 64 wrong flag, 65 bad data, 66 no such source, 69 server or "
    "database away, 70 internal, 73 cannot write, 75 busy, 78 wrong configuration, 130 interrupted."
)

#: Long-lived processes of a fleet: their log is their face.
PROCESSES = ("worker", "collector", "server", "flower", "up", "feed")

profile_option = click.option(
    "--profile",
    "profile_name",
    default="demo",
    show_default=True,
    help="Name of a profile in configs/, or a path to a .toml.",
)


@click.group(epilog=STATUSES, context_settings={"max_content_width": 120})
@click.version_option(package_name="natix-fleet")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="[default: info for processes of the fleet, else warning]",
)
@click.pass_context
def cli(context: click.Context, log_level: str | None) -> None:
    """P(roadwork) for a stream of street photos: a cascade of models, nothing lost, nothing counted twice."""
    # A command that a person looks at says what it has to say itself; a process of the fleet logs.
    level = log_level or ("info" if context.invoked_subcommand in PROCESSES else "warning")
    configure_logging(context.invoked_subcommand or "natix-fleet", level, json=not sys.stderr.isatty())


@cli.command()
@click.option(
    "--photos", default="rendered:400", show_default=True, help="A folder, FILE.parquet, natix, or rendered:N."
)
@click.option("--limit", type=click.IntRange(1), help="Photos at most.")
@click.option(
    "--flower-port", type=click.IntRange(0, 65535), default=5555, show_default=True, help="0: without Flower."
)
@profile_option
def run(photos: str, limit: int | None, flower_port: int, profile_name: str) -> None:
    """Runs photos through a fleet of its own and reports: the main job."""
    if not photos.strip():
        raise UsageError("--photos is empty: give a folder, a FILE.parquet, natix or rendered:N")
    from ops.run import run as run_fleet

    sys.exit(run_fleet(photos, profile_name, limit=limit, flower_port=flower_port or None))


@cli.command()
@profile_option
@click.option(
    "--flower-port", type=click.IntRange(0, 65535), default=5555, show_default=True, help="0: without Flower."
)
@click.option(
    "--overlap",
    type=click.Choice(["cpu", "all", "none"]),
    default="cpu",
    show_default=True,
    help="Workers that a restart replaces only when their successor is ready; a GPU may lack the memory for two.",
)
def up(profile_name: str, flower_port: int, overlap: Literal["cpu", "all", "none"]) -> None:
    """Supervises a profile's workers, collector and Flower until Ctrl-C (drains; again: at once)."""
    from ops.up import up as supervise

    supervise(profile_name, flower_port or None, overlap)


@cli.command()
def restart() -> None:
    """Restarts the processes of the fleet that `up` runs here, one after another, while it works."""
    from ops.restart import restart as restart_fleet
    from ops.up import UP_FOLDER

    restart_fleet(UP_FOLDER)


@cli.command()
@click.argument("tier")
@click.option("--device", help="cpu, cuda:INDEX or cuda:GPU-UUID.  [default: the profile's]")
@profile_option
def worker(tier: str, device: str | None, profile_name: str) -> None:
    """A Celery worker for TIER on one device."""
    from ops.serve import serve_tier

    serve_tier(load_profile(profile_name), tier, device)


@cli.command()
@profile_option
def collector(profile_name: str) -> None:
    """The collector: verdicts into the database, rolling MCC."""
    from ops.serve import serve_collector

    serve_collector(load_profile(profile_name))


@cli.command()
@click.option("--port", type=click.IntRange(0, 65535), default=6399, show_default=True, help="0: a free one.")
@click.option("--fsync", type=click.Choice(["always", "everysec"]), default="always", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("var/server"), show_default=True)
def server(port: int, fsync: Literal["always", "everysec"], folder: Path) -> None:
    """An embedded server for development; other commands here find it by var/server/url."""
    from ops.up import serve_server

    serve_server(folder, port, fsync)


@cli.command()
@click.option("--flower-port", type=click.IntRange(1, 65535), default=5555, show_default=True)
def flower(flower_port: int) -> None:
    """Flower on loopback, with a password from FLOWER_BASIC_AUTH or made up."""
    from ops.up import serve_flower

    serve_flower(flower_port)


@cli.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def feed(arguments: tuple[str, ...]) -> None:
    """Same as python producers/natix.py."""
    from producers.natix import feed as feed_source

    feed_source.main(args=list(arguments), prog_name="natix-fleet feed", standalone_mode=False)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@profile_option
def status(as_json: bool, profile_name: str) -> None:
    """Where every photo is: per tier ready, in flight, settled, escalated; rolling MCC."""
    from ops.status import print_status

    print_status(load_profile(profile_name), as_json=as_json)


@cli.command()
@click.argument("photo", type=click.Path(path_type=Path))
@click.option(
    "--deadline-s", type=click.FloatRange(0.1, 3600), default=9.0, show_default=True, help="A validator waits 9 s."
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@profile_option
def ask(photo: Path, deadline_s: float, as_json: bool, profile_name: str) -> None:
    """Asks the running fleet about one PHOTO, on the live lane."""
    from ops.ask import print_answer

    print_answer(photo, load_profile(profile_name), deadline_s, as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--check", is_flag=True, help="Compare with the GPUs and the memory of this host.")
@profile_option
def plan(as_json: bool, check: bool, profile_name: str) -> None:
    """Which model sits on which device, and what it takes there. A profile that does not fit is refused."""
    from ops.plan import print_plan

    print_plan(load_profile(profile_name), as_json=as_json, check=check)


@cli.group()
def consensus() -> None:
    """How votes become one probability."""


@consensus.command("fit")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .toml to paste into the profile.")
@profile_option
def consensus_fit(out: Path, profile_name: str) -> None:
    """Fits the votes of labelled verdicts, and says whether that is better than to pool them."""
    from ops.consensus import fit_consensus

    fit_consensus(load_profile(profile_name), out)


@cli.group()
def verdicts() -> None:
    """The verdict database."""


@verdicts.command("export")
@click.argument("path", type=click.Path(path_type=Path))
@profile_option
def export_verdicts(path: Path, profile_name: str) -> None:
    """Writes all verdicts to PATH, a .parquet or .csv file."""
    from ops.serve import database_url
    from workers.verdict_export import require_suffix
    from workers.verdicts import VerdictDatabase

    require_suffix(path)
    with VerdictDatabase(database_url(load_profile(profile_name)), create=False) as database:
        click.echo(f"{database.export(path)} verdicts written to {path}")


@cli.group()
def quarantine() -> None:
    """Photos that could not be judged."""


@quarantine.command("list")
@click.option("--reason", default="", help="Only those of this reason.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@profile_option
def quarantine_list(reason: str, limit: int, profile_name: str) -> None:
    """Lists quarantined photos, latest first."""
    from ops.quarantine import list_voids

    list_voids(load_profile(profile_name), reason, limit)


@quarantine.command("show")
@click.argument("image_id")
@profile_option
def quarantine_show(image_id: str, profile_name: str) -> None:
    """Shows all that is known of IMAGE_ID (source:position)."""
    from ops.quarantine import show_void

    show_void(load_profile(profile_name), image_id)


@quarantine.command("replay")
@click.argument("image_ids", nargs=-1, required=True)
@profile_option
def quarantine_replay(image_ids: tuple[str, ...], profile_name: str) -> None:
    """Sends IMAGE_IDS on their way once more."""
    from ops.quarantine import replay

    replay(load_profile(profile_name), image_ids)


@quarantine.command("drop")
@click.argument("image_ids", nargs=-1, required=True)
@profile_option
def quarantine_drop(image_ids: tuple[str, ...], profile_name: str) -> None:
    """Forgets the bytes of IMAGE_IDS for good; their rows stay."""
    from ops.quarantine import drop

    drop(load_profile(profile_name), image_ids)


cli.add_command(models)
cli.add_command(quantize)
cli.add_command(vllm)


def main() -> None:
    """The entry point: errors as one line with the remedy, and a named exit status."""
    run_command(cli, "natix-fleet")


if __name__ == "__main__":
    main()
