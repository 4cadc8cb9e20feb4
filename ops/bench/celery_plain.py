"""What a user would build instead: plain Celery, one acks_late task an image, same hops, as many processes.

No events, no results, no ledger, no database row, no windows: it does less, and loses images (docs/delivery.md). The
collector only counts. kombu publishes the producer's tasks in batches.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery, signals
from kombu.entity import Queue

from ops.bench.null_engine import ESCALATES_EVERY, label_of
from ops.bench.processes import Measured, cpu_s, started, wait_for_all
from ops.serve import READY_FILE
from ops.server import EmbeddedServer
from routing.address import ServerAddress, address_from_environment

HOPS = ("plain-first", "plain-second", "plain-collector")
DONE_KEY = "bench:plain:done"
#: Images between two reports of the collector to the server: it must not be what is measured.
REPORT_EVERY = 50


def careful_app(
    name: str, address: ServerAddress, queues: Sequence[str], prefetch: int, transport_options: Mapping[str, Any]
) -> Celery:
    """Celery as its documentation advises for work that must not be lost; the first queue is the default one."""
    app = Celery(name)
    app.conf.update(
        broker_url=address.broker_url,
        broker_transport_options=address.broker_options["transport_options"] | transport_options,
        task_queues=[Queue(queue) for queue in queues],
        task_default_queue=queues[0],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=prefetch,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    return app


def make_app(address: ServerAddress, prefetch: int) -> Celery:
    """The plain fleet's application with its three tasks."""
    app = careful_app("plain", address, HOPS, prefetch, {})

    @app.task(name=HOPS[0])
    def first(position: int, label: int) -> None:
        unsure = position % ESCALATES_EVERY == 0
        app.send_task(HOPS[1] if unsure else HOPS[2], (position, label), queue=HOPS[1] if unsure else HOPS[2])

    @app.task(name=HOPS[1])
    def second(position: int, label: int) -> None:
        app.send_task(HOPS[2], (position, label), queue=HOPS[2])

    client = address.connect()
    counted = [0]

    @app.task(name=HOPS[2])
    def collect(_position: int, _label: int) -> None:
        counted[0] += 1
        if counted[0] % REPORT_EVERY == 0:
            client.incrby(DONE_KEY, REPORT_EVERY)

    return app


def measure(server: EmbeddedServer, folder: Path, images: int, pool: str, prefetch: int) -> Measured:
    """Starts three workers, publishes, and waits for the count; ``images`` is a multiple of REPORT_EVERY.

    Raises:
        AccountError: images did not arrive.
        ServerError: a worker did not start.
    """
    client = server.address.connect()
    client.flushall()
    env = {"REDIS_URL": server.url, "NATIX_BENCH_PREFETCH": str(prefetch), "NATIX_BENCH_POOL": pool}
    commands: dict[str, Sequence[str]] = {hop: [sys.executable, "-m", "ops.bench.celery_plain", hop] for hop in HOPS}
    with started(commands, env, folder, READY_FILE) as pids:
        children = [*pids, *(child for pid in pids for child in _children(pid)), server.pid or 0]
        before_s = cpu_s(children) + time.process_time()
        begun_s = time.perf_counter()
        app = make_app(server.address, prefetch)
        with app.amqp.producer_pool.acquire(block=True) as producer, producer.batch(256):
            for position in range(images):
                app.send_task(HOPS[0], (position, label_of(position)), queue=HOPS[0], producer=producer)
        wait_for_all(lambda: int(client.get(DONE_KEY) or 0), images, f"plain Celery, {pool}, prefetch {prefetch}")
        took_s = time.perf_counter() - begun_s
        used_s = cpu_s(children) + time.process_time() - before_s
    return Measured(images=images, seconds=took_s, cpu_s=used_s)


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def main() -> None:
    """One worker of the plain fleet."""
    app = make_app(address_from_environment(), int(os.environ["NATIX_BENCH_PREFETCH"]))
    work(app, sys.argv[1], os.environ["NATIX_BENCH_POOL"])


def work(app: Celery, queue: str, pool: str) -> None:
    """A plain worker of one queue, until it is told to end; it writes its ready file when it takes tasks."""
    signals.worker_ready.connect(_say_ready)
    app.worker_main(
        [
            "--quiet",
            "worker",
            f"--pool={pool}",
            "--concurrency=1",
            f"--queues={queue}",
            f"--hostname={queue}@plain",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


def _say_ready(**_: object) -> None:
    Path(os.environ[READY_FILE]).touch()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
