"""natix-fleet status: one look at the ledger."""

import click
import msgspec
from rich.console import Console
from rich.table import Table

from configs.profile import COLLECTOR, Profile
from ops.progress import look
from routing.address import address_from_environment
from routing.ledger import Ledger
from routing.server_check import require_server


def print_status(profile: Profile, *, as_json: bool) -> None:
    """Prints where every photo is.

    Raises:
        FleetError: no server is known, or it does not answer.
    """
    client = address_from_environment().connect()
    require_server(client)
    now = look(Ledger(client), profile)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(now), indent=2).decode())
        return
    table = Table("tier", "ready", "in flight", "settled", "escalated")
    for name, t in (*now.tiers.items(), (COLLECTOR, now.collector)):
        table.add_row(name, str(t.ready), str(t.in_flight), str(t.settled), str(t.escalated))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"admitted {now.admitted}, ended {now.ended} ({now.quarantined} quarantined, {now.late} late), "
        f"in the fleet {now.in_fleet} ({now.stored_bytes / 1e6:.1f} MB), processes {now.owners}"
    )
    console.print(f"rolling MCC of the last 1,000: {now.mcc}; seen in training: {now.mcc_seen}")
