"""natix-fleet ask: one photo through the live lane, answered by a deadline."""

import secrets
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from configs.errors import BusyError, PhotoError, ServerError, SourceError
from configs.profile import Profile
from ops.serve import database_url
from producers.intake import Taken, take
from producers.sources import printable
from routing.address import address_from_environment
from routing.batches import item_batch
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.messages import UNLABELLED, Item
from routing.refusals import Full
from routing.server_check import require_server
from routing.store import PhotoStore, open_store
from workers.verdicts import VerdictDatabase

_LOOK_EVERY_S = 0.02
#: Past the deadline the fleet settles with the votes it has; this long for that to arrive.
_GRACE_S = 3.0
#: The ledger remembers the photo's source for so long after its answer: asked once a second they would fill the server.
_KEPT_S = 3600


def print_answer(path: Path, profile: Profile, deadline_s: float, *, as_json: bool) -> None:
    """Asks about one photo and prints p, tier and votes.

    Raises:
        SourceError: the file cannot be read.
        PhotoError: it is no photo that the fleet takes, or it ended in quarantine.
        BusyError: the fleet is full.
        ServerError: it gave no answer by the deadline.
    """
    try:
        photo = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    try:
        taken = take(photo, profile.photos)
    except PhotoError as error:
        raise PhotoError(f"{printable(path)}: {error}") from None
    address = address_from_environment()
    client = address.connect()
    require_server(client)
    ledger, store = Ledger(client), open_store(profile.photos.store, client)
    with VerdictDatabase(database_url(profile), create=False) as database:
        begun_s = time.monotonic()
        source = _admit(taken, profile, deadline_s, ledger, store, Doorbells(make_app(address, profile)))
        while (row := database.row(source, 0)) is None:
            if time.monotonic() - begun_s > deadline_s + _GRACE_S:
                raise ServerError(
                    f"no answer within {deadline_s:g} s: are the workers and the collector up? (natix-fleet status)"
                )
            time.sleep(_LOOK_EVERY_S)
    _print(row, time.monotonic() - begun_s, as_json=as_json)


def _admit(
    taken: Taken, profile: Profile, deadline_s: float, ledger: Ledger, store: PhotoStore, doorbells: Doorbells
) -> str:
    """Admits the photo as a source of its own on the live lane; that source's name."""
    source = f"ask-{secrets.token_hex(6)}"
    now_ms = int(time.time() * 1000)
    item = Item(
        source=source,
        position=0,
        origin="ask",
        label=UNLABELLED,
        sha256=taken.sha256,
        stored_bytes=len(taken.data),
        size_px=taken.size_px,
        focal_px=taken.focal_px,
        taken_ms=now_ms,
        deadline_ms=now_ms + int(deadline_s * 1000),
    )
    store.put(source, [(0, taken.data)])
    epoch, _ = ledger.open(source, "live", _KEPT_S)
    child = item_batch([item], profile.tiers[0].name, "live")
    bounds = profile.admission
    try:
        woken = ledger.admit(
            source,
            epoch,
            0,
            1,
            "live",
            [child],
            stored=[0] if store.in_server else [],
            max_items=bounds.max_items,
            max_bytes=bounds.max_bytes,
        )
    except Full as full:
        store.drop(source, [0])
        raise BusyError(f"the fleet is full ({full}): try again, or add workers") from None
    doorbells.ring(woken)
    ledger.close(source, epoch, 1)
    return source


def _print(row: dict[str, Any], took_s: float, *, as_json: bool) -> None:
    votes = [{"tier": v.tier, "model": v.model, "p": v.p, "weight": v.weight} for v in row["votes"]]
    if row["p"] is None:
        raise PhotoError(row["reason"], row["detail"])
    answer = {"p": row["p"], "tier": row["tier"], "reason": row["reason"], "votes": votes, "seconds": round(took_s, 3)}
    if as_json:
        click.echo(msgspec.json.encode(answer).decode())
        return
    flag = f" ({row['reason']})" if row["reason"] else ""
    click.echo(f"P(roadwork) = {row['p']:.4f}, settled by {row['tier']}{flag} in {took_s:.2f} s")
    for cast in votes:
        click.echo(f"  {cast['tier']:<12} {cast['model']:<24} p {cast['p']:.4f} weight {cast['weight']:g}")
