"""The twin without a ledger: plain acks_late Celery, killed at the one window that kombu leaves open.

Each task is one image; its effect is an entry in a set of the server, counted however often it ran. What has no entry
when the queue is empty, and nothing is left to redeliver, is lost.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery

from ops.bench.celery_plain import careful_app, work
from ops.chaos.process import die_popping
from ops.chaos.report import Result
from ops.chaos.windows import Windows
from ops.child import Backoff, Child
from ops.serve import READY_FILE
from ops.server import EmbeddedServer
from ops.supervisor import POLL_INTERVAL_S, Supervisor
from routing.address import ServerAddress, address_from_environment
from routing.failpoints import VARIABLE, Window

QUEUE = "plain"
RUNS_KEY = "twin:runs"
IMAGES = 2400
KILLS = 12
#: What Celery redelivers it redelivers after this long: short, so that it gets every chance.
VISIBILITY_TIMEOUT_S = 5
#: Nothing ran for this long, longer than a redelivery takes: nothing more will.
STILL_S = 15.0


def make_app(address: ServerAddress) -> Celery:
    """The twin's application with its one task."""
    redelivery = {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    app = careful_app("twin", address, [QUEUE], 1, redelivery)
    client = address.connect()

    @app.task(name=QUEUE)
    def judge(position: int) -> None:
        client.hincrby(RUNS_KEY, str(position), 1)

    return app


def run_twin(folder: Path, seed: int) -> Result:
    """Publishes images, kills the worker KILLS times as it pops one, and counts what came out.

    Raises:
        FleetError: the server or the worker cannot be started.
    """
    windows = Windows(folder / "armed")
    with EmbeddedServer(folder / "server") as server:
        client = server.address.connect()
        app = make_app(server.address)
        worker = Child(
            name="worker",
            argv=[sys.executable, "-m", "ops.chaos.twin"],
            env={
                "REDIS_URL": server.url,
                VARIABLE: str(windows.folder.absolute()),
                READY_FILE: str(folder / "worker.ready"),
            },
            log=folder / "worker.log",
            ready_file=folder / "worker.ready",
        )
        with Supervisor([worker], backoff=Backoff(base_s=0.1, cap_s=0.2, give_up_exits=1000)) as supervisor:
            begun_s = time.monotonic()
            kills = published = 0
            while published < IMAGES:
                supervisor.poll()
                if supervisor.all_ready:
                    if not windows.armed() and kills < KILLS:
                        windows.arm(Window.POP_IN_FLIGHT)
                    for position in range(published, min(published + IMAGES // (2 * KILLS), IMAGES)):
                        app.send_task(QUEUE, (position,))
                        published += 1
                kills += len(windows.fired())
                time.sleep(POLL_INTERVAL_S)
            ran, moved_s = -1, time.monotonic()
            while time.monotonic() - moved_s < STILL_S and ran < IMAGES:
                supervisor.poll()
                kills += len(windows.fired())
                if (now := client.hlen(RUNS_KEY)) != ran:
                    ran, moved_s = now, time.monotonic()
                time.sleep(POLL_INTERVAL_S)
            seconds = moved_s - begun_s
        runs: Any = client.hgetall(RUNS_KEY)
    return Result(
        admitted=IMAGES,
        verdicts=len(runs),
        lost=IMAGES - len(runs),
        counted_twice=sum(int(n) > 1 for n in runs.values()),
        kills={str(Window.POP_IN_FLIGHT): kills},
        seconds=round(seconds, 1),
        seed=seed,
        fsync="always",
    )


def main() -> None:
    """The twin's worker."""
    die_popping(QUEUE)
    work(make_app(address_from_environment()), QUEUE, "solo")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
