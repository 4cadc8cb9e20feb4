"""make chaos: the campaign under fsync always, a shorter one under everysec, and the twin; writes var/chaos.json."""

import random
import shutil
import sys
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from configs.errors import AccountError, DiskError
from ops.chaos.campaign import Campaign, Settings
from ops.chaos.photos import write_photos
from ops.chaos.report import Report, Result
from ops.chaos.twin import KILLS, run_twin
from ops.lock import RunLock
from ops.report_text import LOG_WIDTH
from routing.command import run_command
from routing.failpoints import Window
from routing.logs import configure_logging

FOLDER = Path("var/chaos")
RESULT = Path("var/chaos.json")

#: The campaign under everysec is a tenth in images and a fifth in kills.
EVERYSEC_IMAGES, EVERYSEC_KILLS = 10, 5
#: From so many kills on, every named window must have had at least LEAST_AT_WINDOW.
WHOLE_KILLS, LEAST_AT_WINDOW = 200, 10


@click.command()
@click.option("--seed", type=click.IntRange(0), help="Same seed, same order of kills.  [default: a random one]")
@click.option("--images", type=click.IntRange(1000), default=100_000, show_default=True)
@click.option("--kills", type=click.IntRange(0), default=210, show_default=True)
def chaos(seed: int | None, images: int, kills: int) -> None:
    """Kills every part of a real fleet at work, again and again, and holds what came out against the truth."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}")

    begun_s = time.monotonic()
    with RunLock(Path("var/chaos.lock"), what="campaign"):
        shutil.rmtree(FOLDER, ignore_errors=True)
        labels = write_photos(FOLDER / "photos")
        say(f"seed {seed}: fsync always, {images:,} images, {kills} kills")
        photos = FOLDER / "photos"
        always = Campaign(FOLDER / "always", photos, labels, Settings(seed, images, kills, "always"), say).run()
        short = Settings(seed, images // EVERYSEC_IMAGES, kills // EVERYSEC_KILLS, "everysec")
        say(f"fsync everysec, {short.images:,} images, {short.kills} kills")
        everysec = Campaign(FOLDER / "everysec", photos, labels, short, say).run()
        say(f"the twin: plain Celery, acks_late, no ledger, {KILLS} kills")
        twin = run_twin(FOLDER / "twin", seed)
    report = _report(always, everysec, twin, time.monotonic() - begun_s)
    try:
        RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise DiskError(f"cannot write {RESULT}: {error.strerror}") from error
    console.print(_table(report))
    for problem in report.problems:
        console.print(f"problem: {problem}")
    console.print("passed" if report.passed else "FAILED")
    if not report.passed:
        sys.exit(AccountError.exit_status)


def _report(always: Result, everysec: Result, twin: Result, seconds: float) -> Report:
    problems = [f"fsync {result.fsync}: {problem}" for result in (always, everysec) for problem in result.problems]
    if always.kills and sum(always.kills.values()) >= WHOLE_KILLS:
        problems += [
            f"window {window}: {n} kills, fewer than {LEAST_AT_WINDOW}"
            for window in Window
            if (n := always.kills.get(window, 0)) < LEAST_AT_WINDOW
        ]
    if twin.kills.get(Window.POP_IN_FLIGHT, 0) and not twin.lost:
        problems.append("the twin lost nothing: the kills at its window do not hit, so the campaign proves nothing")
    own = {name: getattr(always, name) for name in Result.__struct_fields__} | {"problems": problems}
    return Report(**own, everysec=everysec, twin=twin, all_seconds=round(seconds, 1))


def _table(report: Report) -> Table:
    results: tuple[Result, ...] = (report, report.everysec, report.twin)
    table = Table(
        "", "fsync always", "fsync everysec", "twin", title=f"seed {report.seed}, {report.all_seconds:,.0f} s"
    )
    for name in ("admitted", "verdicts", "quarantined", "lost", "counted_twice", "fenced", "reaped", "reconciled"):
        table.add_row(name.replace("_", " "), *(f"{getattr(result, name):,}" for result in results))
    table.add_row("undone by the server", *(f"{result.undone_by_server:,}" for result in results))
    table.add_row("audits", *(f"{result.audits:,}" for result in results))
    for title, field in (("recovery", "recovery_s"), ("recovery, disturbed", "recovery_disturbed_s")):
        spans = [getattr(result, field) for result in results]
        table.add_row(title, *(f"{s.median:.1f} s, max {s.max:.1f} ({s.deaths})" if s.deaths else "-" for s in spans))
    kinds = dict.fromkeys([*Window, *sorted(kind for result in results for kind in result.kills)])
    for kind in kinds:
        table.add_row(f"kills, {kind}", *(str(result.kills.get(kind, 0)) for result in results))
    table.add_row("kills in all", *(str(sum(result.kills.values())) for result in results))
    return table


if __name__ == "__main__":
    configure_logging("chaos", "warning")
    run_command(chaos, "python -m ops.chaos")
