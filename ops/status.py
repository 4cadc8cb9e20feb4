"""natix-fleet status: one look at the ledger."""

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from configs.profile import COLLECTOR, Profile
from ops.account import as_counts, ring_counts
from ops.progress import look
from ops.report import Window, subnet_figures, window_of
from ops.report_text import LOG_WIDTH, show
from routing.address import address_from_environment
from routing.ledger import Ledger
from routing.server_check import require_server
from workers.collector import SUBNET


def print_status(profile: Profile, *, as_json: bool) -> None:
    """Prints where every photo is.

    Raises:
        FleetError: no server is known, or it does not answer.
    """
    client = address_from_environment().connect()
    require_server(client)
    ledger = Ledger(client)
    now, rolling = look(ledger, profile), windows(ledger)
    if as_json:
        status = msgspec.structs.asdict(now) | {"mcc": rolling, "subnet": subnet_figures(ledger.window(SUBNET))}
        click.echo(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
        return
    table = Table("tier", "ready", "in flight", "settled", "escalated", box=SIMPLE_HEAD)
    for name, t in (*now.tiers.items(), (COLLECTOR, now.collector)):
        table.add_row(name, str(t.ready), str(t.in_flight), str(t.settled), str(t.escalated))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(table)
    console.print(
        f"admitted {now.admitted}, ended {now.ended} ({now.quarantined} quarantined, {now.late} late), "
        f"in the fleet {now.in_fleet} ({now.stored_bytes / 1e6:.1f} MB), processes {now.owners}"
    )
    if rolling:
        console.print(_table(rolling))
    s = subnet_figures(ledger.window(SUBNET))
    console.print(f"subnet's own score: MCC {s.mcc:.3f}, accuracy {s.accuracy:.2f}, reward {s.reward:.3f}")


def windows(ledger: Ledger) -> dict[str, dict[str, Window]]:
    """Rolling MCC by scope and window: over-all, per settling tier, per origin; the same under seen/."""
    rolling = {}
    for scope in ledger.scopes():
        if scope == SUBNET:
            continue
        cells = ledger.window(scope)
        rolling[scope] = {
            "100": window_of(ring_counts(cells[-100:])),
            "1000": window_of(ring_counts(cells)),
            "all": window_of(as_counts(ledger.totals(scope))),
        }
    return rolling


def _table(rolling: dict[str, dict[str, Window]]) -> Table:
    table = Table("scope", "MCC of the last 100", "of the last 1,000", "of all", box=SIMPLE_HEAD)
    for scope, by_window in rolling.items():
        table.add_row(scope, *map(show, by_window.values()))
    return table
