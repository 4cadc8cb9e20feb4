"""The soak's producer: references at a steady rate, through the real admission with its journal."""

import signal
import sys
import time
from pathlib import Path

import click

from ops.bench.null_engine import label_of
from ops.bench.profile import bench_profile
from ops.serve import READY_FILE
from producers.admission import Admission
from producers.journal import Journal
from routing.address import address_from_environment
from routing.broker import Doorbells, make_app
from routing.command import run_command
from routing.ledger import Ledger
from routing.logs import configure_logging
from routing.messages import Item
from routing.store import ServerPhotos

SOURCE = "soak"
#: Beside the journal's folder; written when the last reference is admitted.
FED = "fed"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--images", type=int, required=True)
@click.option("--rate", type=float, required=True, help="References a second.")
@click.option("--batch-items", type=int, required=True)
@click.option("--ready-file", type=click.Path(path_type=Path), envvar=READY_FILE, required=True)
def produce(folder: Path, images: int, rate: float, batch_items: int, ready_file: Path) -> None:
    """Admits references 0 to IMAGES, then waits to be told to end, so that its memory can be read to the last."""
    profile = bench_profile(batch_items)
    address = address_from_environment()
    client = address.connect()
    with Journal.create(
        folder / "journal", SOURCE, profile=profile.digest(), spec="references", limit=None, started_ms=0
    ) as journal:
        doorbells = Doorbells(make_app(address, profile, events=False))
        admission = Admission(SOURCE, profile, Ledger(client), ServerPhotos(client), doorbells, journal, "bulk")
        admission.open()
        ready_file.touch()
        begun_s = time.monotonic()
        for start in range(0, images, batch_items):
            end = min(start + batch_items, images)
            time.sleep(max(0.0, begun_s + end / rate - time.monotonic()))
            admission.admit(references(start, end), [], {})
        admission.close()
    (folder / FED).touch()
    signal.pause()


def references(start: int, end: int) -> list[Item]:
    """Items without pixels."""
    now_ms = int(time.time() * 1000)
    return [
        Item(
            source=SOURCE,
            position=position,
            origin=SOURCE,
            label=label_of(position),
            sha256=bytes(32),
            stored_bytes=0,
            size_px=(224, 224),
            taken_ms=now_ms,
        )
        for position in range(start, end)
    ]


if __name__ == "__main__":
    configure_logging("soak-producer", "warning")
    run_command(produce, f"{sys.executable} -m ops.soak.producer")
