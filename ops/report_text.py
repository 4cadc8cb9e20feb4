"""A report for people: figures in tables, the account last, each with what it is worth."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ops.report import Report, Window

#: Columns of tables where there is no terminal to ask.
LOG_WIDTH = 120


def print_report(report: Report, console: Console) -> None:
    """The report for people: accounts first, figures after, each with what it is worth."""
    tiers = Table(
        "tier",
        "scored",
        "settled",
        "escalated",
        "p50 ms",
        "p99 ms",
        "MCC of what it settled",
        title="Tiers",
        box=SIMPLE_HEAD,
    )
    for name, t in report.tiers.items():
        tiers.add_row(
            name, str(t.scored), str(t.settled), str(t.escalated), _or_dash(t.p50_ms), _or_dash(t.p99_ms), show(t.mcc)
        )
    windows = Table(
        "window",
        "MCC, 95 % interval",
        "tp",
        "tn",
        "fp",
        "fn",
        title="Rolling MCC, photos not seen in training",
        box=SIMPLE_HEAD,
    )
    for name, w in report.mcc.items():
        windows.add_row(name, show(w), str(w.tp), str(w.tn), str(w.fp), str(w.fn))
    origins = Table(
        "source",
        "photos",
        "seen in training",
        "tp",
        "tn",
        "fp",
        "fn",
        "MCC",
        title="Sources, unseen photos",
        box=SIMPLE_HEAD,
    )
    for name, o in report.sources.items():
        mcc = "undefined" if o.mcc is None else f"{o.mcc:.3f}"
        origins.add_row(name, str(o.count), str(o.seen), str(o.tp), str(o.tn), str(o.fp), str(o.fn), mcc)
    for table in (tiers, windows, origins):
        table.title_justify = "left"
        console.print(table)
    seen = report.seen_in_training
    if seen.count:
        mcc = "undefined" if seen.mcc is None else f"{seen.mcc:.3f}"
        console.print(
            f"seen in training, in no figure above: {seen.count} photos, "
            f"tp {seen.tp} tn {seen.tn} fp {seen.fp} fn {seen.fn}, MCC {mcc}"
        )
    s = report.subnet
    console.print(
        f"subnet's own score, last 100: MCC {s.mcc:.3f}, accuracy of 10 {s.accuracy:.2f}, reward {s.reward:.3f}"
    )
    for reason, n in report.quarantine.items():
        console.print(f"quarantined: {n} x {reason}")
    if report.photos.note:
        console.print(f"photos: {report.photos.note}")
    console.print(
        f"account: admitted {report.admitted} = verdicts {report.settled} + quarantined {report.quarantined}; "
        f"lost {report.lost}, counted twice {report.counted_twice}; "
        f"{report.seconds:.1f} s, {report.images_per_s:.0f} images/s"
    )
    for problem in report.problems:
        console.print(f"problem: {problem}", style="bold red")


def show(window: Window) -> str:
    """0.912 [0.870, 0.941]; or undefined, with the counts that make it so."""
    if window.value is None or window.low is None or window.high is None:
        return f"undefined (tp {window.tp} tn {window.tn} fp {window.fp} fn {window.fn})"
    return f"{window.value:.3f} [{window.low:.3f}, {window.high:.3f}]"


def _or_dash(ms: int | None) -> str:
    return "-" if ms is None else str(ms)
