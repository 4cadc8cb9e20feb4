"""Engines at their real size: images a second bare and through a worker, device memory against the catalogue.

Where weights cannot be had, checkpoints of the real shape at random weights stand in (ops.bench.shapes): right for
speed and memory, meaningless as scores. Every model is measured in processes of its own; one that fails is a row with
its error.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from configs.errors import DiskError, FleetError
from configs.model import ModelSpec, catalogue, load_model
from ops.bench import through
from ops.bench.bare import Bare, Order, Speed
from ops.bench.noise import jpegs, light_of
from ops.bench.through import Load, Through
from ops.lock import RunLock
from ops.report_text import LOG_WIDTH
from ops.server import EmbeddedServer
from routing.command import run_command
from routing.logs import configure_logging

FOLDER = Path("var/bench-engines")
#: Through a worker, whatever the seconds: this many batches of photos at least, this many photos at most.
_LEAST_BATCHES, _MOST_PHOTOS = 8, 20_000
#: Libraries whose versions stand in the file.
_LIBRARIES = ("torch", "torchvision", "transformers", "ultralytics", "onnxruntime", "pillow", "numpy")


class Row(Struct, frozen=True):
    """One model."""

    key: str
    engine: str
    params: int
    #: What the catalogue says that its weights take at bf16 or fp16.
    weight_bytes: int
    bare: Bare
    through: Through


class Report(Struct, frozen=True):
    """The whole file."""

    device: str
    machine: str
    versions: dict[str, str]
    rows: tuple[Row, ...]


class Settings(Struct, frozen=True):
    """What is measured, and how long."""

    weights: Path
    device: str
    seconds: float
    repeats: int
    batches: tuple[int, ...]
    side_px: int
    threads: int
    compile: bool
    through: bool
    keep: bool
    limit_s: float


def measure(key: str, settings: Settings, server: EmbeddedServer, console: Console) -> Row:
    """Both measurements of one model."""
    spec = load_model(key)
    had = (settings.weights / key).exists()
    bare = _bare(key, settings)
    console.print(f"{key}: {bare.error or ', '.join(map(_speed_text, bare.speeds)) or bare.voted}")
    fast = max((speed for speed in bare.speeds if not speed.error), key=lambda speed: speed.images_per_s, default=None)
    found = Through()
    if settings.through and fast is not None and bare.voted.startswith("0 "):
        found = Through(error="it abstains: a worker has nothing to wait for")
    elif settings.through and fast is not None:
        # Random weights that this run made are there for the worker as well.
        found = _through(key, settings, server, fast)
        console.print(f"{key}, through the worker: {found.error or f'{found.images_per_s:,.1f} images/s'}")
    if not had and not settings.keep:
        shutil.rmtree(settings.weights / key, ignore_errors=True)
    return Row(key, spec.engine, spec.params, spec.weight_bytes.bf16, bare, found)


def _bare(key: str, settings: Settings) -> Bare:
    result = FOLDER / f"{key}.json"
    order = Order(
        key=key,
        device=settings.device,
        weights=str(settings.weights.absolute()),
        batches=settings.batches,
        side_px=settings.side_px,
        seconds=settings.seconds,
        repeats=settings.repeats,
        compile=settings.compile,
        result=str(result),
    )
    path = FOLDER / f"{key}-order.json"
    path.write_bytes(msgspec.json.encode(order))
    command = [sys.executable, "-m", "ops.bench.bare", str(path)]
    with (FOLDER / f"{key}-bare.log").open("wb") as log:
        try:
            status = subprocess.run(  # noqa: S603 - our own module
                command, stdout=log, stderr=subprocess.STDOUT, timeout=settings.limit_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return Bare(key, error=f"not measured within {settings.limit_s:g} s")
    if not result.exists():
        return Bare(key, error=f"the process ended with status {status}; see {log.name}")
    return msgspec.json.decode(result.read_bytes(), type=Bare)


def _through(key: str, settings: Settings, server: EmbeddedServer, fast: Speed) -> Through:
    folder = FOLDER / key
    folder.mkdir()
    count = int(min(max(fast.images_per_s * settings.seconds, _LEAST_BATCHES * fast.batch), _MOST_PHOTOS))
    load = Load(
        keys=(key,),
        device=settings.device,
        weights=settings.weights,
        photos=list(jpegs(count, settings.side_px, light_of(load_model(key)))),
        side_px=settings.side_px,
        max_batch=fast.batch,
        threads=settings.threads,
    )
    try:
        return through.measure(server, folder, load)
    except FleetError as error:
        return Through(len(load.photos), error=str(error).strip().splitlines()[-1])


@click.command()
@click.option("--weights", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder, KEY a model.")
@click.option("--keys", help="Models, with commas; all that an engine runs by default.")
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Each measurement.")
@click.option("--repeats", type=click.IntRange(3), default=5, show_default=True, help="Shares of those seconds.")
@click.option("--batches", default="1,16,64", show_default=True, help="Sizes of a batch, with commas.")
@click.option("--side-px", type=click.IntRange(32, 4096), default=640, show_default=True, help="Of the photos.")
@click.option("--threads", type=click.IntRange(1), default=8, show_default=True, help="Of the worker, to decode.")
@click.option("--compile/--no-compile", default=True, show_default=True, help="Through torch.compile as well.")
@click.option("--through/--no-through", "whole", default=True, show_default=True, help="Through a worker as well.")
@click.option("--keep/--no-keep", default=False, show_default=True, help="Keep checkpoints that this run made.")
@click.option("--limit-s", type=click.FloatRange(1), default=300.0, show_default=True, help="Of one bare model.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("var/bench-engines.json"))
def engines(
    weights: Path,
    keys: str | None,
    device: str,
    seconds: float,
    repeats: int,
    batches: str,
    side_px: int,
    threads: int,
    compile: bool,  # noqa: A002 - the option's name
    whole: bool,
    keep: bool,
    limit_s: float,
    out: Path,
) -> None:
    """Measures engines at their real size."""
    settings = Settings(
        weights=weights,
        device=device,
        seconds=seconds,
        repeats=repeats,
        batches=tuple(int(size) for size in batches.split(",")),
        side_px=side_px,
        threads=threads,
        compile=compile,
        through=whole,
        keep=keep,
        limit_s=limit_s,
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    chosen = keys.split(",") if keys else [key for key, spec in catalogue().items() if _runs(spec)]
    rows: list[Row] = []
    with RunLock(Path("var/bench-engines.lock"), what="benchmark"):
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        with EmbeddedServer(FOLDER / "server", fsync="everysec") as server:
            for key in chosen:
                rows.append(measure(key, settings, server, console))
                # After each: a machine that is taken back leaves what was measured.
                _write(rows, settings, out)
    console.print(_table(rows))


def _write(rows: Sequence[Row], settings: Settings, out: Path) -> None:
    versions = {name: metadata.version(name) for name in _LIBRARIES if _installed(name)}
    report = Report(_device(settings.device), f"{os.cpu_count()} cores, {platform.machine()}", versions, tuple(rows))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise DiskError(f"cannot write {out}: {error.strerror}") from error


def _runs(spec: ModelSpec) -> bool:
    """Whether an engine of ours runs it: what a server of its own serves is measured there."""
    return bool(spec.engine) and spec.engine != "vllm" and not spec.replaced_by


def _installed(name: str) -> bool:
    return find_spec({"pillow": "PIL"}.get(name, name)) is not None


def _device(device: str) -> str:
    """What the driver calls it."""
    if device == "cpu":
        return device
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", f"--id={device[5:]}"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout.strip() or device  # noqa: S603 - a device's number or name


def _speed_text(speed: Speed) -> str:
    how = f"{speed.batch} compiled" if speed.compiled else str(speed.batch)
    if speed.error:
        return f"{how}: {speed.error}"
    least, most = speed.between
    return f"{how}: {speed.images_per_s:,.1f}/s ({least:,.1f}-{most:,.1f}), {_gb(speed.torch_bytes)}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size else "-"


def _table(rows: Sequence[Row]) -> Table:
    table = Table("model", "bare, images/s by batch", "prepare/s", "weights", "held", "process", "worker, images/s")
    for row in rows:
        table.add_row(
            row.key,
            row.bare.error or "\n".join(map(_speed_text, row.bare.speeds)) or f"voted: {row.bare.voted}",
            f"{row.bare.prepared_per_s:,.0f}",
            _gb(row.weight_bytes),
            _gb(row.bare.held_bytes),
            _gb(row.bare.process_bytes),
            row.through.error or (f"{row.through.images_per_s:,.1f}" if row.through.images else "-"),
        )
    return table


if __name__ == "__main__":
    configure_logging("bench", "warning")
    run_command(engines, "python -m ops.bench.engines")
