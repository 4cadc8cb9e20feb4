"""Watching a run: when it is over, and when not."""

import io
import sys
import time
from pathlib import Path

import redis
from rich.console import Console

from ops.child import Child
from ops.interrupts import Interrupts
from ops.progress import Display, Progress, TierProgress
from ops.run import PRODUCER, _Watch
from ops.supervisor import Supervisor

NOTHING = TierProgress(ready=0, in_flight=0, settled=0, escalated=0)


def progress(in_fleet: int) -> Progress:
    return Progress(
        admitted=5,
        ended=5 - in_fleet,
        quarantined=0,
        in_fleet=in_fleet,
        stored_bytes=0,
        owners=1,
        late=0,
        tiers={},
        collector=NOTHING,
        mcc="",
    )


def test_a_server_that_is_away_makes_nothing_lost(tmp_path: Path) -> None:
    """All admitted, an outage longer than photos may stand still does not end the run; it ends with the last photo."""
    begun_s = time.monotonic()
    looks: list[int] = []

    def look() -> Progress:
        since_s = time.monotonic() - begun_s
        if 1.5 < since_s < 4:
            raise redis.ConnectionError("away")
        looks.append(0 if since_s > 4.5 else 5)
        return progress(looks[-1])

    producer = Child(name=PRODUCER, argv=[sys.executable, "-c", ""], log=tmp_path / "log", lasting=False)
    with Supervisor([producer]) as supervisor:
        watch = _Watch(
            supervisor, None, Display(Console(file=io.StringIO()), 5, progress(5)), Interrupts(), still_s=2.0
        )
        watch.until_done(look)
        watch.display.stop()
    assert looks[-1] == 0
