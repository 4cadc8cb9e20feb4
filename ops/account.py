"""The account: what was admitted, by the journal that the producer wrote outside the server, against what came out.

Three views must agree with it by id: rows, windows and counters. What the journal has and a view lacks is lost; what a
view has
more often than once is counted twice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from configs.profile import Profile
from producers.admitted import JournalReport
from routing.ledger import Ledger
from workers.mcc import Counts
from workers.verdicts import VerdictDatabase


class Baseline(Struct, frozen=True):
    """What the ledger had counted before the run; a user's own server may hold earlier ones."""

    counters: Mapping[str, int]
    #: All-time labelled verdicts by scope.
    scopes: Mapping[str, int]
    #: By tier: scored, settled, escalated...
    tallies: Mapping[str, Mapping[str, int]]


class Account(Struct, frozen=True):
    """Ids are source:position."""

    admitted: int
    verdicts: int
    quarantined: int
    lost: int
    counted_twice: int
    #: One line for each disagreement, with an example.
    problems: list[str]

    @property
    def balanced(self) -> bool:
        """Every admitted image ended exactly once."""
        return not self.problems and self.admitted == self.verdicts + self.quarantined


def baseline(ledger: Ledger, profile: Profile) -> Baseline:
    """Takes down the counters before a run."""
    return Baseline(
        counters=_counters(ledger),
        scopes={scope: labelled(ledger.totals(scope)) for scope in ledger.scopes()},
        tallies=ledger.snapshot([tier.name for tier in profile.tiers]).tallies,
    )


def _counters(ledger: Ledger) -> dict[str, int]:
    account = ledger.snapshot([]).account
    return {name: account.get(name, 0) for name in ("admitted", "verdicts", "quarantined", "late")}


def settle_account(
    journals: Sequence[JournalReport], database: VerdictDatabase, ledger: Ledger, before: Baseline
) -> Account:
    """Compares the journals with rows, windows and counters.

    Args:
        journals: of the run's sources.
        database: where its rows are.
        ledger: where its windows and counters are.
        before: the counters before the run.
    """
    lost: set[str] = set()
    twice: set[str] = set()
    problems: list[str] = []
    admitted = rows = 0
    # Asked about no source, the database tells of all.
    sources = [journal.header.source for journal in journals] or [""]
    for journal in journals:
        source = journal.header.source
        admitted += journal.end
        expected = set(range(journal.end))
        found = set(database.ids(source))
        rows += len(found)
        lost |= {f"{source}:{position}" for position in expected - found}
        if extra := found - expected:
            problems.append(f"{len(extra)} rows that the journal does not have, such as {source}:{min(extra)}")
    if lost:
        problems.append(f"{len(lost)} admitted images have no row, such as {min(lost)}")

    voids = sum(database.reasons(sources).values())
    counts = database.recount(sources)
    surplus = shortfall = 0
    for scope, recounted in sorted(counts.items()):
        in_rings = Counter(id_ for id_ in ledger.ring(scope) if id_.rpartition(":")[0] in sources)
        doubled = {id_ for id_, n in in_rings.items() if n > 1}
        twice |= doubled
        if doubled:
            problems.append(f"window {scope!r}: {len(doubled)} images twice, such as {min(doubled)}")
        counted = labelled(ledger.totals(scope)) - before.scopes.get(scope, 0)
        if counted != recounted.n:
            problems.append(f"counter {scope!r}: {counted} verdicts, the rows say {recounted.n}")
            surplus = max(surplus, counted - recounted.n)
            shortfall = max(shortfall, recounted.n - counted)
    # An example above may be one of these: only what neither has a row nor is in the fleet is lost.
    in_fleet = max(0, ledger.snapshot([]).use.get("items", 0))
    if in_fleet:
        problems.append(f"{in_fleet} photos are still in the fleet: see var/run/*.log")
    now = _counters(ledger)
    moved = {name: now[name] - before.counters.get(name, 0) for name in now}
    ended = moved["verdicts"] + moved["quarantined"]
    if moved["admitted"] != admitted:
        problems.append(f"the ledger admitted {moved['admitted']}, the journal has {admitted}")
    if ended != rows:
        problems.append(f"the ledger ended {ended} images, the rows are {rows}")
    return Account(
        admitted=admitted,
        verdicts=rows - voids,
        quarantined=voids,
        lost=max(0, max(len(lost), shortfall) - in_fleet),
        counted_twice=max(len(twice), surplus, ended - rows, 0),
        problems=problems,
    )


def labelled(cells: Mapping[str, int]) -> int:
    """Verdicts in all-time counts, voids left out."""
    return sum(n for name, n in cells.items() if name in "0123")


def as_counts(cells: Mapping[str, int]) -> Counts:
    """All-time counts of the ledger as a confusion matrix."""
    return Counts(tn=cells.get("0", 0), fp=cells.get("1", 0), fn=cells.get("2", 0), tp=cells.get("3", 0))


def ring_counts(cells: bytes) -> Counts:
    """The confusion matrix of a ring's cells, voids left out."""
    return Counts(tn=cells.count(b"0"), fp=cells.count(b"1"), fn=cells.count(b"2"), tp=cells.count(b"3"))
