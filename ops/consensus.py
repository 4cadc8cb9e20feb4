"""natix-fleet consensus fit: from the labelled verdicts of a fleet to the [consensus] table of its profile."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.table import Table

from configs.errors import ConfigError, DiskError, UsageError
from configs.profile import Profile, Stack
from ops.models import console_of
from ops.report import window_of
from ops.report_text import LOG_WIDTH, show
from ops.serve import database_url
from ops.stack import Sample, absent, cross_validate, fit
from routing.decision import P_MAX, P_MIN, consensus
from workers.mcc import FN, FP, TN, TP, Counts, cell
from workers.verdicts import Labelled, VerdictDatabase

#: Photos of the rarer label for each term of a fit. Fewer, and slopes follow chance: P. Peduzzi et al., A simulation
#: study of the number of events per variable in logistic regression analysis, J. of Clinical Epidemiology, 1996.
PER_TERM = 10
#: Where all photos are of one origin, runs of so many neighbours stay together instead.
RUN = 50


class Worth(Struct, frozen=True):
    """What a way of putting votes together is worth, on photos that it was not fitted on."""

    counts: Counts
    #: Mean, natural logarithm, over the photos that it has a probability for.
    log_loss: float

    @property
    def mcc(self) -> str:
        """With its interval."""
        return show(window_of(self.counts))


def fit_consensus(profile: Profile, out: Path) -> None:
    """Fits the labelled verdicts of a profile's database, prints what the fit is worth, writes it.

    Raises:
        UsageError: ``out`` is no .toml.
        ConfigError: there is no database, or too few labels in it.
        DiskError: the file cannot be written.
    """
    if out.suffix != ".toml":
        raise UsageError(f"cannot write {out.name!r}: the name must end in .toml")
    with VerdictDatabase(database_url(profile), create=False) as database:
        samples = known_samples(database.labelled(), profile)
    keys = require_enough(samples, profile)
    try:
        stacked = cross_validate(samples, keys)
    except ValueError as error:
        raise ConfigError(f"a fit cannot be checked on photos that it did not see: {error}") from None
    pooled = [consensus(sample.votes) for sample in samples]
    worths = {"pool": worth(samples, pooled), "stack": worth(samples, stacked)}
    fitted = fit(samples, keys)
    words = (
        f"{len(samples)} labelled verdicts, {datetime.now(UTC):%Y-%m-%d}; on photos not fitted on MCC "
        f"{worths['stack'].mcc}, log-loss {worths['stack'].log_loss:.4f}; pooled {worths['pool'].mcc}, "
        f"{worths['pool'].log_loss:.4f}"
    )
    try:
        out.write_text(as_toml(fitted, words), encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write {out}: {error.strerror}") from None
    _print(samples, keys, worths, out)


def known_samples(rows: Iterable[Labelled], profile: Profile) -> list[Sample]:
    """The rows with the votes that the profile's models cast in their present version; rows without any left out.

    Grouped by origin; by runs of neighbours where all are of one origin.
    """
    names = {spec.name for specs in profile.models().values() for spec in specs}
    known = []
    for row in rows:
        votes = tuple(vote for vote in row.votes if vote.model in names)
        if votes:
            known.append((row, votes))
    apart = len({row.origin for row, _ in known}) > 1
    return [
        Sample(row.origin if apart else f"{row.source}:{row.position // RUN}", row.label, votes, row.origin)
        for row, votes in known
    ]


def require_enough(samples: Sequence[Sample], profile: Profile) -> list[str]:
    """The models that voted, in the profile's order.

    Raises:
        ConfigError: no vote is of its models, or there are too few labels for a fit of so many.
    """
    if not samples:
        raise ConfigError(
            f"no labelled verdict has a vote of a model of profile {profile.name!r} as it is now: name the profile "
            "that made the verdicts with --profile, or run labelled photos through this one's fleet"
        )
    cast = Counter(vote.model.partition("@")[0] for sample in samples for vote in sample.votes)
    keys = list(dict.fromkeys(s.key for specs in profile.models().values() for s in specs if cast[s.key]))
    rarer = min((sum(sample.label == label for sample in samples) for label in (0, 1)), default=0)
    terms = len(keys) + len(absent(samples, keys))
    if rarer < PER_TERM * terms:
        of = f"each of {terms} terms" if terms > 1 else "its one term"
        raise ConfigError(
            f"too few labels: {rarer} photo{'s' * (rarer != 1)} of the rarer label with votes of profile "
            f"{profile.name!r}, {PER_TERM * terms} are needed, {PER_TERM} for {of} (a slope a model, one more where "
            "its vote may be missing): with fewer a fit follows chance. Run more labelled photos through the fleet"
        )
    return keys


def worth(samples: Sequence[Sample], found: Sequence[float | None]) -> Worth:
    """Of the photos that have a probability."""
    pairs = [(sample.label, p) for sample, p in zip(samples, found, strict=True) if p is not None]
    cells = Counter(cell(label, p) for label, p in pairs)
    losses = [-math.log(min(max(p if label else 1 - p, P_MIN), P_MAX)) for label, p in pairs]
    counts = Counts(tp=cells[TP], tn=cells[TN], fp=cells[FP], fn=cells[FN])
    return Worth(counts, math.fsum(losses) / len(losses) if losses else math.nan)


def as_toml(fitted: Stack, fitted_on: str) -> str:
    """The [consensus] table of a profile."""
    lines = ["[consensus]", f"intercept = {fitted.intercept!r}", f'fitted_on = "{fitted_on}"']
    for name, terms in (("slopes", fitted.slopes), ("missing", fitted.missing)):
        # A key may hold dots: quoted, it is one key.
        lines += ["", f"[consensus.{name}]", *(f'"{key}" = {value!r}' for key, value in terms.items())]
    return "\n".join(lines) + "\n"


def _print(samples: Sequence[Sample], keys: Sequence[str], worths: dict[str, Worth], out: Path) -> None:
    console = console_of(LOG_WIDTH)
    groups = {sample.group for sample in samples}
    console.print(
        f"{len(samples)} labelled verdicts that no model was trained on, in {len(groups)} groups; "
        f"models that voted: {', '.join(keys)}"
    )
    if len({sample.origin for sample in samples}) == 1:
        console.print(
            "all are of one origin, and the groups are stretches of it: the figures hold for photos alike, and say "
            "nothing of other cameras"
        )
    table = Table("on photos not fitted on", "photos", "MCC, 95 % interval", "log-loss", box=SIMPLE_HEAD)
    for name, of in worths.items():
        table.add_row(name, str(of.counts.n), of.mcc, f"{of.log_loss:.4f}")
    console.print(table)
    if worths["pool"].counts.n == worths["stack"].counts.n and worths["stack"].log_loss >= worths["pool"].log_loss:
        console.print(
            f"the stack is no better than the pool: written to {out} for the record only; leave the profile as it is, "
            "or label more photos"
        )
    else:
        console.print(
            f"written to {out}: paste it at the end of the profile; all processes of the fleet change to it at once"
        )
