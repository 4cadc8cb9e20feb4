"""Our side of the delivery benchmark: references through the whole fleet, database rows included."""

import os
import resource
import sys
import time
from pathlib import Path

from msgspec import Struct

from configs.errors import AccountError
from ops.account import baseline, settle_account
from ops.bench.null_engine import NullEngine, label_of, load_references
from ops.bench.processes import Measured, cpu_s, started, wait_for_all
from ops.bench.profile import bench_profile
from ops.serve import DATABASE, READY_FILE, serve_collector, serve_tier
from ops.server import EmbeddedServer
from producers.admission import Admission
from producers.admitted import read_journal
from producers.journal import Journal
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.logs import configure_logging
from routing.messages import Item
from routing.store import ServerPhotos
from workers.verdicts import VerdictDatabase

SOURCE = "bench"
#: Batches of one admit: what the producer does when photos come faster than it admits.
ADMIT_BATCHES = 4


class Settings(Struct, frozen=True):
    """One run's size."""

    images: int
    batch_items: int


def measure(server: EmbeddedServer, folder: Path, settings: Settings) -> Measured:
    """Starts the fleet, feeds it, waits until all are in windows and database; checks the account.

    Raises:
        AccountError: images did not arrive, or the account does not balance.
        ServerError: a process did not start.
    """
    env = {
        "REDIS_URL": server.url,
        DATABASE: f"sqlite:///{folder / 'verdicts.db'}",
        "NATIX_BENCH_BATCH": str(settings.batch_items),
    }
    names = ["first", "second", "collector"]
    profile = bench_profile(settings.batch_items)
    client = server.address.connect()
    ledger = Ledger(client)
    before = baseline(ledger, profile)
    with started(
        {name: [sys.executable, "-m", "ops.bench.fleet", name] for name in names}, env, folder, READY_FILE
    ) as pids:
        cpu_before_s = cpu_s([*pids, server.pid or 0]) + _own_cpu_s()
        begun_s = time.perf_counter()
        with Journal.create(
            folder / "journal", SOURCE, profile=profile.digest(), spec="references", limit=None, started_ms=0
        ) as journal:
            _feed(
                Admission(
                    SOURCE,
                    profile,
                    ledger,
                    ServerPhotos(client),
                    Doorbells(make_app(server.address, profile, events=False)),
                    journal,
                    "bulk",
                ),
                settings,
            )
        wait_for_all(lambda: settings.images - ledger.snapshot([]).use.get("items", 0), settings.images, "natix-fleet")
        took_s = time.perf_counter() - begun_s
        used_s = cpu_s([*pids, server.pid or 0]) + _own_cpu_s() - cpu_before_s
    with VerdictDatabase(env[DATABASE], create=False) as database:
        account = settle_account([read_journal(journal.path)], database, ledger, before)
    if not account.balanced or account.admitted != settings.images:
        raise AccountError(f"the account does not balance: {account.problems or account}")
    return Measured(images=settings.images, seconds=took_s, cpu_s=used_s)


def _feed(admission: Admission, settings: Settings) -> None:
    admission.open()
    step = ADMIT_BATCHES * settings.batch_items
    digest = bytes(32)
    for start in range(0, settings.images, step):
        now_ms = int(time.time() * 1000)
        items = [
            Item(
                source=SOURCE,
                position=position,
                origin=SOURCE,
                label=label_of(position),
                sha256=digest,
                stored_bytes=0,
                size_px=(224, 224),
                taken_ms=now_ms,
            )
            for position in range(start, min(start + step, settings.images))
        ]
        admission.admit(items, [], {})
    admission.close()


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """A process of the measured fleet: first, second or collector."""
    configure_logging(f"bench-{sys.argv[1]}", "warning")
    profile = bench_profile(int(os.environ["NATIX_BENCH_BATCH"]))
    if sys.argv[1] == "collector":
        serve_collector(profile)
    else:
        last = not profile.after(sys.argv[1])
        serve_tier(profile, sys.argv[1], "cpu", NullEngine(last_tier=last), load_references)


if __name__ == "__main__":
    main()
