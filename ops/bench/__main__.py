"""make bench: delivery, ours beside plain Celery at its best, in turn on one server; var/bench.json and a table."""

import os
import platform
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from configs.errors import DiskError
from ops.bench import celery_plain, fleet
from ops.bench.processes import Measured
from ops.lock import RunLock
from ops.report_text import LOG_WIDTH
from ops.server import EmbeddedServer
from routing.command import run_command
from routing.logs import configure_logging

FOLDER = Path("var/bench")
RESULT = Path("var/bench.json")
GOAL_RATIO = 100.0
GOAL_IMAGES_PER_S = 60_000.0
GOAL_CPU_MS = 0.033

POOLS = ("solo", "threads", "prefork")
PREFETCHES = (1, 16, 64)


class Row(Struct, frozen=True):
    """One line of var/bench.json: medians of the counted runs, and their ranges."""

    row: str
    ours: float
    unit: str
    against: float
    ratio: float
    goal: float
    met: bool
    #: Least and most of the runs.
    ours_range: tuple[float, float]
    against_range: tuple[float, float]
    ratio_range: tuple[float, float]


class Bench:
    """Runs of both sides on one server, emptied before each, with a clean folder."""

    def __init__(self, console: Console, server: EmbeddedServer) -> None:
        self._console = console
        self._server = server

    def plain(self, images: int, pool: str, prefetch: int) -> Measured:
        """Plain Celery."""
        measured = celery_plain.measure(self._server, self._clean(), images, pool, prefetch)
        self._say(f"plain Celery, {pool}, prefetch {prefetch}", measured)
        return measured

    def ours(self, images: int, batch_items: int) -> Measured:
        """The fleet."""
        measured = fleet.measure(self._server, self._clean(), fleet.Settings(images, batch_items))
        self._say(f"natix-fleet, {batch_items} items a batch", measured)
        return measured

    def _clean(self) -> Path:
        self._server.address.connect().flushall()
        run = FOLDER / "run"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        return run

    def _say(self, what: str, measured: Measured) -> None:
        self._console.print(
            f"{what}: {measured.images_per_s:,.0f} images/s, {measured.cpu_ms_per_image:.4f} CPU-ms an image "
            f"({measured.images:,} images)"
        )


def _pairs(
    bench: Bench, console: Console, images: int, plain_images: int, runs: int, batch_items: int
) -> list[tuple[Measured, Measured]]:
    """Finds plain Celery's best settings, then runs both sides in turn."""
    plain_images -= plain_images % celery_plain.REPORT_EVERY
    short = max(500, plain_images // 5)
    tried = {(pool, n): bench.plain(short, pool, n).images_per_s for pool in POOLS for n in PREFETCHES}
    pool, prefetch = max(tried, key=lambda setting: tried[setting])
    console.print(f"plain Celery is best with {pool}, prefetch {prefetch}")
    return [(bench.ours(images, batch_items), bench.plain(plain_images, pool, prefetch)) for _ in range(runs)]


@click.command()
@click.option("--images", type=click.IntRange(1000), default=600_000, show_default=True, help="Ours, a run.")
@click.option(
    "--plain-images", type=click.IntRange(500), default=5_000, show_default=True, help="Plain Celery's, a run."
)
@click.option(
    "--runs", type=click.IntRange(1), default=3, show_default=True, help="Counted runs of each side, in turn."
)
@click.option("--batch-items", type=click.IntRange(1, 4096), default=256, show_default=True)
def bench(images: int, plain_images: int, runs: int, batch_items: int) -> None:
    """Measures delivery: references only, null engine, two tiers to verdict, windows and rows."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    with RunLock(Path("var/bench.lock"), what="benchmark"):
        shutil.rmtree(FOLDER, ignore_errors=True)
        with EmbeddedServer(FOLDER / "server", fsync="everysec") as server:
            pairs = _pairs(Bench(console, server), console, images, plain_images, runs, batch_items)
    rows = _rows(pairs)
    try:
        RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    except OSError as error:
        raise DiskError(f"cannot write {RESULT}: {error.strerror}") from error
    console.print(_table(rows, runs))


def _rows(pairs: Sequence[tuple[Measured, Measured]]) -> list[Row]:
    """The table's rows from pairs of (ours, plain Celery's)."""
    ours, against = ([pair[side].images_per_s for pair in pairs] for side in (0, 1))
    cpu, cpu_against = ([pair[side].cpu_ms_per_image for pair in pairs] for side in (0, 1))
    ratios = [mine / theirs for mine, theirs in zip(ours, against, strict=True)]
    saved = [theirs / mine for mine, theirs in zip(cpu, cpu_against, strict=True)]
    ones = [1.0] * len(pairs)
    return [
        _row("delivery throughput", "images/s", ours, against, ratios, GOAL_IMAGES_PER_S, digits=0),
        _row("delivery against plain Celery", "times", ratios, ones, ratios, GOAL_RATIO, digits=1),
        _row("delivery CPU", "CPU-ms an image", cpu, cpu_against, saved, GOAL_CPU_MS, digits=4, less_is_better=True),
    ]


def _row(
    name: str,
    unit: str,
    ours: Sequence[float],
    against: Sequence[float],
    ratios: Sequence[float],
    goal: float,
    *,
    digits: int,
    less_is_better: bool = False,
) -> Row:
    median = statistics.median(ours)
    return Row(
        row=name,
        ours=round(median, digits),
        unit=unit,
        against=round(statistics.median(against), digits),
        ratio=round(statistics.median(ratios), 1),
        goal=goal,
        met=median <= goal if less_is_better else median >= goal,
        ours_range=(round(min(ours), digits), round(max(ours), digits)),
        against_range=(round(min(against), digits), round(max(against), digits)),
        ratio_range=(round(min(ratios), 1), round(max(ratios), 1)),
    )


def _table(rows: Sequence[Row], runs: int) -> Table:
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    table = Table("row", "ours", "against", "ratio", "goal", "met", title=f"{machine}, median (least-most) of {runs}")
    for r in rows:
        table.add_row(
            f"{r.row}, {r.unit}",
            _spread(r.ours, r.ours_range),
            _spread(r.against, r.against_range),
            _spread(r.ratio, r.ratio_range),
            f"{r.goal:,g}",
            "yes" if r.met else "no",
        )
    return table


def _spread(median: float, between: tuple[float, float]) -> str:
    return f"{median:,g} ({between[0]:,g}-{between[1]:,g})"


if __name__ == "__main__":
    configure_logging("bench", "warning")
    run_command(bench, "python -m ops.bench")
