"""Rows and windows counted anew from the labels of the source files, by the collector's rules, in code of its own.

It reads the database with SQL of its own and shares no line with the collector: an error in either shows.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from routing.ledger import Ledger

_ROWS = "SELECT source, position, p, label, tier, origin FROM verdicts ORDER BY source, position"


def recount(database: Path, ledger: Ledger, labels: Sequence[int]) -> list[str]:
    """What is wrong with rows, all-time counts and windows; empty when nothing is.

    Args:
        database: the campaign's, SQLite.
        ledger: drained.
        labels: of the source's photos in their order; positions go round them.
    """
    problems: list[str] = []
    cells: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    with sqlite3.connect(database) as connection:
        for source, position, p, label, tier, origin in connection.execute(_ROWS):
            truth = labels[position % len(labels)]
            if label != truth:
                problems.append(f"row {source}:{position} has label {label}, its source {truth}")
            name = f"{source}:{position}"
            # 0 tn, 1 fp, 2 fn, 3 tp; an answer of exactly 0.5 is none. A void enters the subnet's window only.
            cells[name] = "-" if p is None else str(2 * truth + (p > 0.5))
            scopes = ("subnet",) if p is None else ("all", f"tier:{tier}", f"origin:{origin}", "subnet")
            for scope in scopes:
                members.setdefault(scope, []).append(name)
    for scope, names in sorted(members.items()):
        problems += _check_counts(scope, Counter(cells[name] for name in names), ledger)
        problems += _check_window(scope, cells, names, ledger)
    if extra := set(ledger.scopes()) - members.keys():
        problems.append(f"windows that no row belongs to: {', '.join(sorted(extra))}")
    return problems


def _check_counts(scope: str, expected: Counter[str], ledger: Ledger) -> Iterator[str]:
    counted = ledger.totals(scope)
    for cell in "0123-":
        if counted.get(cell, 0) != expected[cell]:
            yield f"counter {scope}: {counted.get(cell, 0)} of cell {cell}, rows and labels say {expected[cell]}"


def _check_window(scope: str, cells: dict[str, str], names: list[str], ledger: Ledger) -> Iterator[str]:
    """The window is a tail of each source's verdicts, in order, each once, with the cell of its label."""
    ring, window = ledger.ring(scope), ledger.window(scope).decode()
    for name, cell in zip(ring, window, strict=True):
        if cells.get(name) != cell:
            yield f"window {scope}: {name} stands there as {cell}, the source's label says {cells.get(name)}"
            return
    if len(ring) != min(1000, len(names)):
        yield f"window {scope}: {len(ring)} cells of {len(names)} verdicts"
    for source in {name.rpartition(":")[0] for name in ring}:
        inside = [name for name in ring if name.rpartition(":")[0] == source]
        tail = [name for name in names if name.rpartition(":")[0] == source][-len(inside) :]
        if inside != tail:
            yield f"window {scope}: {len(inside)} cells of {source} are not its last ones in order"
