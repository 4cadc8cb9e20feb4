"""A panel of a profile through the whole fleet, at real size and random weights: python -m ops.bench.panel."""

import shutil
from pathlib import Path

import click
import msgspec

from configs.errors import UsageError
from configs.model import load_model
from configs.profile import load_profile
from ops.bench import through
from ops.bench.engines import FOLDER
from ops.bench.noise import jpegs
from ops.bench.shapes import SHAPES, put
from ops.bench.through import Load
from ops.lock import RunLock
from ops.server import EmbeddedServer
from routing.command import run_command
from routing.logs import configure_logging


@click.command()
@click.option("--weights", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder, KEY a model.")
@click.option("--profile", "profile_name", default="h100x2", show_default=True)
@click.option("--tier", default="panel", show_default=True)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--photos", type=click.IntRange(1), default=200, show_default=True)
@click.option("--side-px", type=click.IntRange(32, 4096), default=640, show_default=True, help="Of the photos.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("var/bench-panel.json"))
def panel(weights: Path, profile_name: str, tier: str, device: str, photos: int, side_px: int, out: Path) -> None:
    """Measures one tier of a profile: photos a second from the first verdict to the last, every member voting."""
    measured = load_profile(profile_name).tier(tier)
    keys = tuple(voter.model for voter in measured.voters)
    if unknown := [key for key in keys if key not in SHAPES and load_model(key).params]:
        raise UsageError(f"--tier {tier}: the shape of {', '.join(unknown)} is not known here")
    for key in keys:
        if key in SHAPES:
            put(load_model(key), weights, device)
    load = Load(
        keys=keys,
        device=device,
        weights=weights,
        photos=list(jpegs(photos, side_px, 1.0)),
        side_px=side_px,
        max_batch=measured.max_batch,
        threads=8,
    )
    with RunLock(Path("var/bench-engines.lock"), what="benchmark"):
        shutil.rmtree(FOLDER, ignore_errors=True)
        (FOLDER / tier).mkdir(parents=True)
        with EmbeddedServer(FOLDER / "server", fsync="everysec") as server:
            result = through.measure(server, FOLDER / tier, load)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.encode(result))
    click.echo(
        f"{profile_name}/{tier}: {result.images} photos, {result.images_per_s:.1f}/s, ready in {result.ready_s:.0f} s"
    )


if __name__ == "__main__":
    configure_logging("bench", "warning")
    run_command(panel, "python -m ops.bench.panel")
