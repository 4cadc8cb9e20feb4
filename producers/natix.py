"""Feed photos into the fleet: python producers/natix.py SOURCE.

SOURCE is "natix" (the NATIX test split on the hub), a folder (with manifest.csv, or roadwork/ and no_roadwork/, or of
unlabelled photos), a FILE.parquet, or "rendered:N" (scenes that the project renders).
"""

import os
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

import click
import structlog

from configs.errors import FleetError, UsageError
from configs.profile import Lane, Profile, load_profile
from producers.admission import Admission
from producers.feed import Feed, Pace
from producers.journal import Journal, journal_path
from producers.looped import Looped
from producers.sources import Source, open_source
from routing.address import address_from_environment
from routing.broker import Doorbells, make_app
from routing.command import INTERRUPTED, run_command
from routing.ledger import Ledger
from routing.logs import configure_logging
from routing.server_check import require_server
from routing.store import open_store

log = structlog.get_logger(__name__)

#: Told to end, it has this long for the batch in hand.
DRAIN_S = 20.0


@click.command(epilog="Example: python producers/natix.py rendered:200 --rate 50 --lane live")
@click.argument("source")
@click.option(
    "--profile", "profile_name", default="demo", show_default=True, help="Name or path of the fleet's profile."
)
@click.option("--limit", type=click.IntRange(1), help="Photos at most.")
@click.option("--rate", type=click.FloatRange(0), default=0.0, help="Photos a second at most; 0: as fast as they come.")
@click.option("--loop", is_flag=True, help="Begin again at the end of the source, for ever.")
@click.option(
    "--lane", type=click.Choice(["bulk", "live"]), default="bulk", show_default=True, help="The live lane goes first."
)
@click.option("--linger-ms", type=click.FloatRange(0), help="Close a batch after this long.  [default: the profile's]")
@click.option("--max-items", type=click.IntRange(1, 4096), help="Close a batch at this size.  [default: the profile's]")
@click.option(
    "--deadline-s", type=click.FloatRange(0), default=0.0, help="A verdict is due this long after intake; 0: whenever."
)
@click.option("--run", "run_id", help="Goes on with this run of the source instead of a new one.")
@click.option(
    "--journal", "journal_folder", type=click.Path(path_type=Path), default=Path("var/journal"), show_default=True
)
def feed(
    source: str,
    profile_name: str,
    limit: int | None,
    rate: float,
    loop: bool,
    lane: Lane,
    linger_ms: float | None,
    max_items: int | None,
    deadline_s: float,
    run_id: str | None,
    journal_folder: Path,
) -> None:
    """Checks, shrinks and batches the photos of SOURCE, and admits them to the fleet; waits while the fleet is full."""
    if not source.strip():
        raise UsageError("SOURCE is empty: give a folder, a FILE.parquet, natix or rendered:N")
    profile = load_profile(profile_name)
    photos: Source = open_source(source, limit)
    if loop:
        photos = Looped(photos)
    if photos.note:
        click.echo(photos.note, err=True)
    pace = Pace(
        max_items=max_items or profile.batch.max_items,
        linger_ms=profile.batch.linger_ms if linger_ms is None else linger_ms,
        rate=rate,
        deadline_ms=round(deadline_s * 1000),
    )
    _run(photos, source, limit, profile, pace, lane, run_id or secrets.token_hex(4), journal_folder)


def _run(
    photos: Source,
    spec: str,
    limit: int | None,
    profile: Profile,
    pace: Pace,
    lane: Lane,
    run_id: str,
    journal_folder: Path,
) -> None:
    address = address_from_environment()
    client = address.connect()
    require_server(client)
    ending = _ended_by_signals()
    name = f"{photos.name}-{run_id}"
    with _journal(journal_folder, name, _place(spec), limit, profile) as journal:
        admission = Admission(
            name,
            profile,
            Ledger(client),
            open_store(profile.photos.store, client),
            Doorbells(make_app(address, profile)),
            journal,
            lane,
            go_on=lambda: not ending.is_set(),
        )
        training = frozenset[bytes]().union(
            *(model.training_photos() for models in profile.models().values() for model in models)
        )
        feed = Feed(photos, admission, profile, pace, training, ending)
        log.info("feeding", source=name, lane=lane, total=photos.total)
        feed.run()
    log.info(
        "fed", source=name, photos=feed.fed, bad=feed.bad, waited_s=round(admission.waited_s, 1), ended=ending.is_set()
    )
    click.echo(f"{name}: {feed.fed} photos admitted, {feed.bad} of them bad at intake")


def _ended_by_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM, which drains for DRAIN_S at most; the second one ends the process."""
    ending = threading.Event()

    def end(*_: object) -> None:
        if ending.is_set():
            # Not an exception: it would wait for the thread that reads, and a hub that is away keeps that one for long.
            # Nothing is lost: journal and ledger are written as if this were a crash.
            os._exit(INTERRUPTED)
        ending.set()

    def bound_drain() -> None:
        ending.wait()
        time.sleep(DRAIN_S)
        # A server that is silent, a source that hangs: as if this were a crash, too.
        log.critical("not drained, ending this process", drain_s=DRAIN_S)
        os._exit(FleetError.exit_status)

    # Not started by the handler: that may run in the middle of another thread's start, which holds a lock.
    threading.Thread(target=bound_drain, name="drain", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return ending


def _place(spec: str) -> str:
    """``spec`` with a file's or folder's absolute path, so that two of one name differ."""
    return spec if spec == "natix" or spec.startswith("rendered:") else str(Path(spec).resolve())


def _journal(folder: Path, source: str, spec: str, limit: int | None, profile: Profile) -> Journal:
    """The journal of a run: a new one, or the one that an interrupted producer left of the same photos.

    Raises:
        UsageError: it was left by a run of other photos.
    """
    if not journal_path(folder, source).exists():
        started_ms = round(time.time() * 1000)
        return Journal.create(folder, source, profile=profile.digest(), spec=spec, limit=limit, started_ms=started_ms)
    journal = Journal.reopen(folder, source)
    header = journal.header
    if (header.spec, header.limit) != (spec, limit):
        journal.close()
        limited = f" with --limit {header.limit}" if header.limit else " without --limit"
        raise UsageError(f"run {source} is of {header.spec}{limited}: give the same photos, or another --run")
    return journal


def main() -> None:
    """The command as a process of its own."""
    configure_logging("producer", json=not sys.stderr.isatty())
    run_command(feed)


if __name__ == "__main__":
    main()
