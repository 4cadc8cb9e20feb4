"""natix-fleet quarantine: look at photos that could not be judged, send them again, or let them go."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click
import msgspec

from configs.errors import SourceError, UsageError
from configs.profile import Profile
from ops.serve import database_url
from routing.address import address_from_environment
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.messages import UNLABELLED, Item, encode
from routing.server_check import require_server
from routing.store import open_store
from workers.verdicts import VerdictDatabase


def list_voids(profile: Profile, reason: str, limit: int) -> None:
    """Prints quarantined photos, latest first: a line each of id, stop, reason and detail, with tabs between them."""
    with VerdictDatabase(database_url(profile), create=False) as database:
        for row in database.quarantined(reason=reason, limit=limit):
            click.echo("\t".join([f"{row['source']}:{row['position']}", row["tier"], row["reason"], row["detail"]]))


def show_void(profile: Profile, image_id: str) -> None:
    """Prints a quarantined photo's row.

    Raises:
        UsageError: that is no image id.
        SourceError: there is no such row, or it is a verdict.
    """
    _split(image_id)
    with VerdictDatabase(database_url(profile), create=False) as database:
        row = _void(database, image_id)
    for name, value in row.items():
        click.echo(f"{name:>12}  {value}")


def replay(profile: Profile, image_ids: Sequence[str]) -> None:
    """Sends quarantined photos on their way once more.

    Raises:
        UsageError: one of them is no image id; none was sent.
        SourceError: one of them is not in quarantine (any more), or its bytes are gone.
    """
    for image_id in image_ids:
        _split(image_id)
    address = address_from_environment()
    client = address.connect()
    require_server(client)
    ledger, store = Ledger(client), open_store(profile.photos.store, client)
    first = profile.tiers[0].name
    with ExitStack() as stack:
        database = stack.enter_context(VerdictDatabase(database_url(profile), create=False))
        # At the end even if one of them is refused: those before it are on their way.
        stack.callback(lambda: Doorbells(make_app(address, profile)).ring([first]))
        for image_id in image_ids:
            row = _void(database, image_id)
            item = Item(
                source=row["source"],
                position=row["position"],
                origin=row["origin"],
                label=UNLABELLED if row["label"] is None else row["label"],
                sha256=bytes.fromhex(row["sha256"]),
                stored_bytes=0,
                size_px=(row["width_px"], row["height_px"]),
                seen=bool(row["seen"]),
                taken_ms=row["taken_ms"],
                replay=True,
            )
            (data,) = store.get([item])
            if data is None:
                raise SourceError(f"{image_id}: its bytes are not kept ({row['reason']}): feed the photo again")
            item = msgspec.structs.replace(item, stored_bytes=len(data))
            answer = ledger.replay(
                item.source,
                item.position,
                first,
                encode([item]),
                len(data),
                in_server=store.in_server,
                row_gen=row["gen"],
            )
            if answer != "ok":
                raise SourceError(f"{image_id}: not in quarantine (any more): it was replayed or dropped")
            click.echo(f"{image_id}: on its way to {first}")


def drop(profile: Profile, image_ids: Sequence[str]) -> None:
    """Takes photos out of quarantine for good, their bytes too, wherever the profile keeps them.

    Raises:
        UsageError: one of them is no image id; none was dropped.
        SourceError: one of them was not there; the others are dropped.
    """
    places = {image_id: _split(image_id) for image_id in image_ids}
    client = address_from_environment().connect()
    require_server(client)
    ledger, store = Ledger(client), open_store(profile.photos.store, client)
    dropped = 0
    for image_id, (source, position) in places.items():
        # The bytes of a photo that is on its way, or was sent on it once more, stay.
        if ledger.drop([image_id]):
            store.drop(source, [position])
            dropped += 1
    click.echo(f"{dropped} of {len(places)} dropped")
    if dropped < len(places):
        raise SourceError(f"{len(places) - dropped} of {len(places)} were not in quarantine")


def _split(image_id: str) -> tuple[str, int]:
    # At most 18 digits: what a database's integer holds.
    match = re.fullmatch(r"([!-9;-~]+):([0-9]{1,18})", image_id)
    if not match:
        raise UsageError(f"image id {image_id!r} is not SOURCE:POSITION; natix-fleet quarantine list shows them")
    return match[1], int(match[2])


def _void(database: VerdictDatabase, image_id: str) -> dict[str, Any]:
    row = database.row(*_split(image_id))
    if row is None:
        raise SourceError(f"{image_id}: the database has no such image")
    if row["p"] is not None:
        raise SourceError(f"{image_id}: it has a verdict (p {row['p']:.4f}), it is not in quarantine")
    return row
