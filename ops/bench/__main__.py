"""make bench: delivery, ours beside plain Celery at its best, in turn on one server; var/bench.json and a table."""

import os
import platform
import shutil
import statistics
from pathlib import Path

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from configs.errors import DiskError, FleetError
from ops.bench import celery_plain, fleet
from ops.bench.processes import Measured
from ops.lock import RunLock
from ops.report_text import LOG_WIDTH
from ops.server import EmbeddedServer
from routing.logs import configure_logging

FOLDER = Path("var/bench")
RESULT = Path("var/bench.json")
GOAL_RATIO = 100.0
GOAL_IMAGES_PER_S = 60_000.0

POOLS = ("solo", "threads", "prefork")
PREFETCHES = (1, 16, 64)


class Row(Struct, frozen=True):
    """One line of var/bench.json."""

    row: str
    ours: float
    unit: str
    against: float | None
    ratio: float | None
    goal: float
    met: bool


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
    ours = statistics.median(mine.images_per_s for mine, _ in pairs)
    against = statistics.median(theirs.images_per_s for _, theirs in pairs)
    ratio = statistics.median(mine.images_per_s / theirs.images_per_s for mine, theirs in pairs)
    cpu = statistics.median(mine.cpu_ms_per_image for mine, _ in pairs)
    cpu_against = statistics.median(theirs.cpu_ms_per_image for _, theirs in pairs)
    rows = [
        Row(
            "delivery throughput",
            round(ours),
            "images/s",
            round(against),
            round(ratio, 1),
            GOAL_IMAGES_PER_S,
            ours >= GOAL_IMAGES_PER_S,
        ),
        Row(
            "delivery against plain Celery",
            round(ratio, 1),
            "times",
            1.0,
            round(ratio, 1),
            GOAL_RATIO,
            ratio >= GOAL_RATIO,
        ),
        Row(
            "delivery CPU",
            round(cpu, 4),
            "CPU-ms an image",
            round(cpu_against, 4),
            round(cpu_against / cpu, 1),
            0.033,
            cpu <= 0.033,
        ),
    ]
    try:
        RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    except OSError as error:
        raise DiskError(f"cannot write {RESULT}: {error.strerror}") from error
    table = Table(
        "row",
        "ours",
        "against",
        "ratio",
        "goal",
        "met",
        title=f"{os.cpu_count()} cores, {platform.machine()}, median of {runs}",
    )
    for r in rows:
        table.add_row(
            r.row, f"{r.ours:,} {r.unit}", f"{r.against:,}", f"{r.ratio:,}", f"{r.goal:,}", "yes" if r.met else "no"
        )
    console.print(table)


if __name__ == "__main__":
    configure_logging("bench", "warning")
    try:
        bench()
    except FleetError as error:
        raise SystemExit(f"error: {error}") from None
