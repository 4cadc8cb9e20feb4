"""Celery as the fleet uses it: a carrier of doorbells. Every broker setting stands here, each with its reason."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import redis
import structlog
from celery import Celery, signals
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from configs.profile import COLLECTOR, Profile
from routing.address import ServerAddress

if TYPE_CHECKING:
    from kombu.connection import Connection

log = structlog.get_logger(__name__)

#: What a broker that is away or full makes of a doorbell; kombu translates some of redis-py's errors and not others.
UNHEARD = (OperationalError, redis.RedisError, OSError)

#: How a broker says that there is no such queue.
NOT_FOUND = "404"

#: After a doorbell that could not be sent none is tried for so long: a try may wait for the broker.
QUIET_S = 1.0


def queue_name(stop: str) -> str:
    """The broker queue that carries the doorbells of a stop."""
    return f"natix-fleet.{stop}"


def task_name(stop: str) -> str:
    """What Flower shows."""
    return f"serve.{stop}"


def stops(profile: Profile) -> list[str]:
    """The stops that have a queue: every tier and the collector. The route stop has none, it is served at each tick."""
    return [*(tier.name for tier in profile.tiers), COLLECTOR]


def keep_logging() -> None:
    """Celery configures logging itself unless somebody listens to this signal."""
    signals.setup_logging.connect(_leave_logging_alone, dispatch_uid="natix-fleet")


def _leave_logging_alone(**_: object) -> None:
    pass


def make_app(address: ServerAddress, profile: Profile, *, events: bool = True) -> Celery:
    """The Celery application of a fleet."""
    keep_logging()
    app = Celery("natix-fleet")
    exchange = Exchange("natix-fleet", type="direct")
    app.conf.update(
        broker_url=address.broker_url,
        broker_transport_options=address.broker_options.get("transport_options", {}),
        broker_use_ssl=address.broker_options.get("use_ssl"),
        broker_connection_retry_on_startup=True,
        # A consumer waits for its broker as long as it takes (Celery's own: 100 tries), and a server that is read-only
        # or full for a while refuses commands: neither may end the process.
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        # A mistyped queue is an error at the sender, not a queue that nobody reads.
        task_create_missing_queues=False,
        task_queues=[Queue(queue_name(s), exchange, routing_key=queue_name(s)) for s in stops(profile)],
        # A doorbell goes straight to its queue's list: a lost binding cannot lose it.
        task_default_exchange="natix-fleet",
        task_default_exchange_type="direct",
        # Pickle would let whoever can write to the server run code.
        task_serializer="json",
        accept_content=["json"],
        result_serializer="json",
        # The ledger holds the results; a doorbell has none.
        task_ignore_result=True,
        # Acknowledged on receipt: a lost doorbell is rung again by the next tick, and acks_late leaves residue for an
        # hour.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=events,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=True,
        # Flower's bus; orphaned queues of it must not pile up.
        event_queue_expires=60.0,
        control_queue_expires=60.0,
        # Every process speaks UTC in its messages.
        enable_utc=True,
        timezone="UTC",
    )
    return app


class Doorbells:
    """Rings stops through Celery. A doorbell that cannot be sent is no error: the next tick rings again."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._quiet_until_s = 0.0
        self._counting: tuple[Connection, Any] | None = None

    def ring(self, names: Iterable[str]) -> None:
        """Sends one doorbell to each stop named."""
        for stop in names:
            if time.monotonic() < self._quiet_until_s:
                return
            try:
                self._app.send_task(task_name(stop), queue=queue_name(stop), retry=False)
            except UNHEARD as error:
                self._quiet_until_s = time.monotonic() + QUIET_S
                log.warning("doorbell not sent", stop=stop, error=str(error))

    def waiting(self, names: Iterable[str]) -> dict[str, int] | None:
        """Doorbells that wait at each stop; None: the broker does not say. For one thread: its channel is kept."""
        try:
            return {stop: self._length(queue_name(stop)) for stop in names}
        except UNHEARD as error:
            log.warning("doorbells not counted", error=str(error))
            self._forget()
            return None

    def _length(self, queue: str) -> int:
        if self._counting is None:
            # Kept: each connection and channel leaves hundreds of objects in cycles, and a fleet counts every second.
            connection = self._app.connection_for_read()
            self._counting = connection, connection.channel()
        connection, channel = self._counting
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors as error:
            # kombu's Redis transport answers 404 for a queue that is empty. RabbitMQ closes the channel with its 404.
            if str(getattr(error, "reply_code", "")) != NOT_FOUND:
                raise OperationalError(str(error)) from error
            if not getattr(channel, "is_open", True):
                self._forget()
            return 0

    def _forget(self) -> None:
        if self._counting is not None:
            connection, _ = self._counting
            self._counting = None
            # Its channels too; kombu passes over what a broken connection says to that.
            connection.release()
