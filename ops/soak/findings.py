"""What a soak found: growth over its second half, what is left at its end, and which limits that breaks."""

from collections.abc import Callable, Sequence

from msgspec import Struct
from rich.table import Table

from ops.account import Account
from ops.soak.gauge import Held, Sample
from ops.soak.residue import Kind
from ops.soak.slope import Slope, slope_of

#: At 1,000 references a second 5 MiB an hour are 1.5 bytes each: nobody keeps as much as a pointer (8 bytes) for a
#: photo that passed. At two batches a second they are 730 bytes each: nobody keeps a batch, or its doorbell.
GROWTH_MIB_PER_H = 5.0
#: Files that are open for a moment (the journal's folder, a rewritten append-only file) may meet a sample.
MORE_FILES = 3
MORE_THREADS = 2
#: Doorbells that nobody took, and the names of queues: 16 a stop at most.
CELERY_ENTRIES = 100
#: What a process takes once and keeps (connections, caches, a larger buffer) is not growth, and in a shorter second
#: half it would look like it: such a soak shows its figures and does not judge them.
JUDGED_HALF_S = 300.0


class Row(Struct, frozen=True):
    """One thing that grew, or did not."""

    what: str
    unit: str
    least: float
    most: float
    slope: Slope


class Soak(Struct, frozen=True):
    """var/soak.json."""

    images: int
    minutes: float
    images_per_s: float
    #: Cores that all its processes took together, the server's included.
    cores: float
    fsync: str
    account: Account
    rows: list[Row]
    #: Most open files and threads of each process in the first half and in the second.
    open_files: dict[str, tuple[int, int]]
    threads: dict[str, tuple[int, int]]
    #: Keys that are left on the server, by kind.
    keys: dict[str, Kind]
    growth_judged: bool
    #: One line for each limit that is broken.
    broken: list[str]
    samples: list[Sample]


def growth(samples: Sequence[Sample]) -> list[Row]:
    """Memory over the second half."""
    half = second_half(samples)
    at_s = [sample.at_s for sample in half]
    rows = [
        _row(name, "resident MiB", at_s, [sample.processes[name].rss_mib for sample in half])
        for name in half[0].processes
    ]
    return [*rows, _row("server's data", "used MiB", at_s, [sample.used_mib for sample in half])]


def _row(what: str, unit: str, at_s: Sequence[float], values: Sequence[float]) -> Row:
    return Row(what, unit, min(values), max(values), slope_of(at_s, values))


def first_half(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Up to the middle of the time that they cover."""
    return [sample for sample in samples if sample.at_s <= samples[-1].at_s / 2]


def second_half(samples: Sequence[Sample]) -> Sequence[Sample]:
    """What comes after."""
    return [sample for sample in samples if sample.at_s > samples[-1].at_s / 2]


def most(samples: Sequence[Sample], figure: Callable[[Held], int]) -> dict[str, tuple[int, int]]:
    """A figure's maximum in each half, by process."""
    return {
        name: (
            max(figure(sample.processes[name]) for sample in first_half(samples)),
            max(figure(sample.processes[name]) for sample in second_half(samples)),
        )
        for name in samples[0].processes
    }


def judged(samples: Sequence[Sample]) -> bool:
    """Whether the second half is long enough for its slopes to count."""
    half = second_half(samples)
    return half[-1].at_s - half[0].at_s >= JUDGED_HALF_S


def growth_problems(
    rows: Sequence[Row], open_files: dict[str, tuple[int, int]], threads: dict[str, tuple[int, int]]
) -> list[str]:
    """A line for each that grows beyond its limit."""
    steep = [
        f"{row.what}, {row.unit}: {row.slope.per_h:+.2f} an hour, {GROWTH_MIB_PER_H:g} are allowed"
        for row in rows
        if row.slope.per_h > GROWTH_MIB_PER_H
    ]
    more = [
        f"{name}: {second} {what} in the second half, {first} in the first"
        for what, by_process, allowed in (("open files", open_files, MORE_FILES), ("threads", threads, MORE_THREADS))
        for name, (first, second) in by_process.items()
        if second > first + allowed
    ]
    return steep + more


def table(soak: Soak) -> Table:
    """For people."""
    shown = Table(
        *("what", "unit", "least-most", "an hour", "95 % interval", "open files", "threads"),
        title=f"{soak.images:,} references in {soak.minutes:.1f} minutes ({soak.images_per_s:,.0f}/s, "
        f"{soak.cores:.2f} cores, fsync {soak.fsync}), its second half",
    )
    for row in soak.rows:
        files, threads = soak.open_files.get(row.what), soak.threads.get(row.what)
        shown.add_row(
            row.what,
            row.unit,
            f"{row.least:.1f}-{row.most:.1f}",
            f"{row.slope.per_h:+.2f}",
            f"{row.slope.low:+.2f} to {row.slope.high:+.2f}",
            f"{files[1]}" if files else "-",
            f"{threads[1]}" if threads else "-",
        )
    return shown
