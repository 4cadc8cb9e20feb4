"""The processes of a fleet: one tier on one device, or the collector. Everything is checked before the first claim."""

import os
from pathlib import Path

import redis
import structlog

from configs.errors import DiskError
from configs.memory import served
from configs.profile import Profile
from routing.address import ServerAddress, address_from_environment
from routing.broker import Doorbells, make_app, stops
from routing.ledger import Ledger
from routing.owner import Owner
from routing.server_check import require_server
from routing.standby import Standby
from routing.store import open_store
from workers.app import run_celery
from workers.collector import CollectorStop
from workers.device import pin
from workers.engines import Engine, require_engine
from workers.panel import Member, Panel, build_panel
from workers.photos import LoadInputs, photo_loader
from workers.progress import Progress
from workers.rest import Rest
from workers.tier import TierStop
from workers.verdicts import VerdictDatabase

log = structlog.get_logger(__name__)

#: A file that a worker writes when it takes work: its pid, its owner id. The supervisor waits for it.
READY_FILE = "NATIX_FLEET_READY_FILE"
#: Overrides the profile's verdict database.
DATABASE = "NATIX_FLEET_DATABASE"
#: One decodes while the other waits for the disk.
COLLECTOR_THREADS = 2
#: No progress for this long: the collector ends itself.
COLLECTOR_STALL_S = 60.0


def database_url(profile: Profile) -> str:
    """Where this fleet's verdicts are."""
    return os.environ.get(DATABASE) or profile.collector.database


def serve_tier(
    profile: Profile,
    tier_name: str,
    device: str | None,
    engine: Engine | None = None,
    load_inputs: LoadInputs | None = None,
) -> None:
    """A tier's worker until it is told to end.

    Args:
        profile: the fleet.
        tier_name: one of its tiers.
        device: overrides the tier's.
        engine: instead of its first model's own, alone; for the benchmark and for tests of delivery only.
        load_inputs: likewise, instead of photos from the store.

    Raises:
        FleetError: the tier, the device, the model, the server or the profile in force is not as it must be.
    """
    tier = profile.tier(tier_name)
    specs = profile.models()[tier.name]
    for spec in specs:
        require_engine(spec)
    pinned = pin(device or tier.device)
    panel = (
        Panel(tier.name, [Member(specs[0], engine, tier.voters[0].weight)])
        if engine
        else build_panel(tier, specs, pinned, profile.server_url(tier) if served(specs) else "")
    )
    panel.load()
    panel.warm_up()
    log.info("models ready", tier=tier.name, models=[spec.name for spec in specs], device=device or tier.device)
    progress = Progress()
    address, client = _server()
    app = make_app(address, profile)
    owner = Owner(
        Ledger(client), profile, Doorbells(app), stops(profile), stalled_s=progress.stalled_s, stall_s=tier.stall_s
    )
    if load_inputs is None:
        load_inputs = photo_loader(open_store(profile.photos.store, client), panel, progress.moved)
    stop = TierStop(profile, tier, panel, load_inputs, owner, progress)
    if tier.residency == "sleep" and served(specs):
        stop.rests = Rest(client, tier.name, profile.server_url(tier))
    owner.standby = Standby(stop.name, stop.serve, stop.rests)
    owner.start()
    stop.scorer.start()
    try:
        # One more: it looks for live work while all others are busy.
        run_celery(app, stop, tier.threads + 1, lambda: _say_ready(owner))
    finally:
        stop.ending.set()
        owner.standby.end()
        stop.scorer.stop()
        owner.stop()


def serve_collector(profile: Profile) -> None:
    """The collector until it is told to end.

    Raises:
        FleetError: the database, the server or the profile in force is not as it must be.
    """
    database = VerdictDatabase(database_url(profile), profile=profile.digest())
    progress = Progress()
    address, client = _server()
    app = make_app(address, profile)
    owner = Owner(
        Ledger(client),
        profile,
        Doorbells(app),
        stops(profile),
        stalled_s=progress.stalled_s,
        stall_s=COLLECTOR_STALL_S,
    )
    stop = CollectorStop(profile, database, open_store(profile.photos.store, client), owner, progress)
    owner.standby = Standby(stop.name, stop.serve)
    owner.start()
    try:
        run_celery(app, stop, COLLECTOR_THREADS, lambda: _say_ready(owner))
    finally:
        stop.ending.set()
        owner.standby.end()
        owner.stop()
        database.close()


def _server() -> tuple[ServerAddress, redis.Redis]:
    address = address_from_environment()
    client = address.connect()
    require_server(client)
    return address, client


def _say_ready(owner: Owner) -> None:
    if path := os.environ.get(READY_FILE):
        try:
            Path(path).write_text(f"{os.getpid()}\n{owner.id}\n")
        except OSError as error:
            # In one of Celery's signals, which would swallow an exception.
            log.critical("cannot write the ready file", path=path, error=error.strerror)
            os._exit(DiskError.exit_status)
    log.info("taking work")
