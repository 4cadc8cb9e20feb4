"""Our side of the delivery benchmark: references through the whole fleet, database rows included."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from ops.account import baseline
from ops.bench.driven import ADMIT_BATCHES, SOURCE, Admit, feed, require_all
from ops.bench.null_engine import NullEngine, label_of, load_references
from ops.bench.processes import Measured, cpu_s, started, wait_for_all
from ops.bench.profile import bench_profile
from ops.serve import DATABASE, READY_FILE, serve_collector, serve_tier
from ops.server import EmbeddedServer
from routing.ledger import Ledger
from routing.logs import configure_logging
from routing.messages import Item


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
        journal = feed(server, profile, folder / "journal", _admits(settings))
        wait_for_all(lambda: settings.images - ledger.snapshot([]).use.get("items", 0), settings.images, "natix-fleet")
        took_s = time.perf_counter() - begun_s
        used_s = cpu_s([*pids, server.pid or 0]) + _own_cpu_s() - cpu_before_s
    require_all(settings.images, journal, env[DATABASE], ledger, before)
    return Measured(images=settings.images, seconds=took_s, cpu_s=used_s)


def _admits(settings: Settings) -> Iterator[Admit]:
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
        yield items, []


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
