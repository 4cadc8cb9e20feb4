"""Whether a server may carry a fleet: it answers, it is new enough, and it keeps what it is given."""

from typing import Any

import redis
import structlog
from redis.sentinel import MasterNotFoundError

from configs.errors import ServerError
from routing.retry import CERTIFICATE_REFUSED, ServerRetry

#: No try begins later. A peer that says nothing is given up after one reply timeout (routing.address), 10 s.
START_WITHIN_S = 5.0


def require_server(client: redis.Redis) -> None:
    """Checks that the server answers and can keep the fleet's promises; warns in the log where an ACL hides an answer.

    Raises:
        ServerError: it is away, loading, read-only, a cluster, older than 7, or may evict keys; with the remedy.
    """
    log = structlog.get_logger()
    retry = client.get_retry()
    # Somebody waits at a prompt. Once the fleet is at work nobody does, and an outage is waited out.
    client.set_retry(ServerRetry(START_WITHIN_S))
    try:
        client.ping()
        info: dict[str, Any] = client.info()
    except redis.exceptions.NoPermissionError as error:
        log.warning("server not checked: the ACL forbids it", cause=str(error))
        return
    except redis.exceptions.RedisError as error:
        raise ServerError(_remedy(error)) from error
    finally:
        if retry:
            client.set_retry(retry)
    version = str(info.get("redis_version", "0"))
    # Not redis_mode: Valkey calls that server_mode.
    if info.get("cluster_enabled"):
        raise ServerError("the server is a Redis Cluster: use a single server, or sentinel:// for failover")
    if int(version.partition(".")[0]) < 7:
        raise ServerError(f"the server is Redis {version}: install Redis 7 or newer, or Valkey")
    if info.get("role") == "slave":
        raise ServerError("the server is a read-only replica: name its master, or the sentinels (sentinel://)")
    policy = info.get("maxmemory_policy")
    if policy is None:
        log.warning("eviction policy not checked: the server does not tell it", wanted="noeviction")
    elif policy != "noeviction":
        raise ServerError(
            f"the server may evict keys ({policy}), which loses images: CONFIG SET maxmemory-policy noeviction"
        )
    if info.get("aof_enabled") == 0:
        log.warning("the server keeps no append-only file: what it holds is lost when it stops")


def server_error(error: Exception) -> ServerError | None:
    """A failure of a command in the fleet's own words; None: it is none of the server's."""
    return ServerError(_remedy(error)) if isinstance(error, redis.exceptions.RedisError) else None


def _remedy(error: redis.exceptions.RedisError) -> str:
    match error:
        case redis.exceptions.AuthenticationError():
            return "the server refuses the login: check user and password in the server address"
        case redis.exceptions.BusyLoadingError():
            return "the server is still loading its data: try again in a moment"
        case MasterNotFoundError():
            # Its own text is the repr of every client: pages of it.
            return "no sentinel answers and knows the master: start them, or check the sentinels and master_name"
        case redis.exceptions.InvalidResponse():
            return "what listens there is no Redis server: correct the server address"
        case redis.exceptions.ConnectionError() | redis.exceptions.TimeoutError():
            return _connection_remedy(str(error))
    return f"the server cannot be used: {error}"


def _connection_remedy(text: str) -> str:
    if CERTIFICATE_REFUSED not in text:
        return f"the server does not answer: start it or correct the server address ({text})"
    cause = text.partition("verify failed: ")[2].partition(" (_ssl")[0]
    return (
        f"the server's certificate is refused ({cause}): name its authority's file (ssl_ca_certs), "
        "and the server as the certificate does"
    )
