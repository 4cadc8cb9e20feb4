"""natix-fleet models: every model that was asked for, what stands in for it, and what is known of each."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import get_args

import click
import msgspec
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from configs.memory import weight_bytes
from configs.model import ModelSpec, State, catalogue

#: Columns that the whole table wants; a narrower terminal gets its left part. Where there is no terminal: these.
WIDE = 180

STATES: tuple[State, ...] = get_args(State)


class Row(Struct, frozen=True):
    """One model, as --json says it."""

    key: str
    #: 0 foundation to 6 consensus.
    level: int
    #: The name that was asked for; empty: nobody asked for it.
    requested: str
    id: str
    revision: str
    state: State
    reason: str
    seen: str
    replaced_by: str
    engine: str
    extra: str
    #: What brings the library where an extra cannot.
    install: str
    environment: str
    precision: str
    #: Of the weights at ``precision``; 0: not known.
    bytes: int
    params: int
    licence: str
    gated: bool
    non_commercial: bool
    #: In words: how its output becomes a score, and when there is none.
    score: str
    abstains: str
    #: Of its vote where a profile says nothing.
    weight: float


def rows(level: int | None = None) -> list[Row]:
    """The catalogue by level, of one level or all.

    Raises:
        ConfigError: the catalogue is damaged.
    """
    specs = (spec for spec in catalogue().values() if level in (None, spec.level))
    return [_row(spec) for spec in sorted(specs, key=lambda spec: spec.level)]


def _row(spec: ModelSpec) -> Row:
    own = {name: getattr(spec, name) for name in Row.__struct_fields__ if name not in ("id", "bytes")}
    return Row(id=spec.repository, bytes=_bytes(spec), **own)


def _bytes(spec: ModelSpec) -> int:
    """Of the weights, on a device; of the project's own that says nothing of them, as its file is."""
    return weight_bytes(spec, spec.precision) or (spec.path.stat().st_size if spec.path.is_file() else 0)


def print_models(level: int | None, *, as_json: bool) -> None:
    """Prints the catalogue.

    Args:
        level: only this one; None: all.
        as_json: for machines.

    Raises:
        ConfigError: the catalogue is damaged.
    """
    found = rows(level)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    console = console_of(WIDE)
    console.print(_table(found, wide=console.width >= WIDE))
    console.print(count(found))
    if console.width < WIDE:
        console.print(f"{WIDE} columns, or --json, also show engine, extra, licence and why")


def console_of(otherwise: int) -> Console:
    """What tables are printed on: as wide as COLUMNS says, else as the terminal is, else ``otherwise``."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return Console(highlight=False, width=int(asked))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = otherwise
    return console


def _table(found: Sequence[Row], *, wide: bool) -> Table:
    # A key is typed again, so it is never cut; the others give way.
    key = Column("key", no_wrap=True, min_width=max((len(row.key) for row in found), default=0))
    table = Table(key, "level", "asked for as", "state", Column("size", justify="right"), box=SIMPLE_HEAD)
    if wide:
        for name in ("engine", "extra"):
            table.add_column(name, no_wrap=True)
        table.add_column("licence", max_width=24, no_wrap=True)
        table.add_column("why", ratio=1, no_wrap=True)
        table.expand = True
    for row in found:
        cells = [row.key, str(row.level), row.requested or "-", row.state, size(row.bytes)]
        if wide:
            cells += [row.engine or "-", row.extra or row.environment or "-"]
            cells += [f"{row.licence or '-'}{' (gated)' if row.gated else ''}"]
            cells += [f"see {row.replaced_by}: {row.reason}" if row.replaced_by else row.reason]
        table.add_row(*cells)
    return table


def count(found: Sequence[Row]) -> str:
    """How many there are, and in which states."""
    states = Counter(row.state for row in found)
    asked = sum(bool(row.requested) for row in found)
    parts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    return f"{len(found)} models, {asked} of them asked for by name: {parts}"


def size(of_bytes: int) -> str:
    """Bytes for people; "-" for none."""
    if of_bytes >= 1e9:
        return f"{of_bytes / 1e9:.1f} GB"
    return f"{of_bytes / 1e6:.1f} MB" if of_bytes else "-"
