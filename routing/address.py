"""The address of the Redis server: one parser, and the form that each library wants of it.

kombu and redis-py spell TLS, sentinels and Unix sockets differently, and both fall back to something unsafe or endless
when an option is left out. Everybody who opens a connection asks here.
"""

import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from configs.errors import ConfigError
from routing.retry import ServerRetry

#: Where ``natix-fleet server`` leaves the URL of the server that it runs, under the working directory.
SERVER_URL_FILE = Path("var/server/url")
CONNECT_TIMEOUT_S = 5.0
#: Longer than any script runs and than an fsync under load takes; without it a dead peer is waited for without end.
REPLY_TIMEOUT_S = 10.0
HEALTH_CHECK_INTERVAL_S = 15

_FORMS = {
    "redis": "redis://:PASSWORD@127.0.0.1:6379/0",
    "rediss": "rediss://:PASSWORD@redis.example.com:6379/0?ssl_ca_certs=/etc/ssl/redis-ca.pem",
    "sentinel": "sentinel://:PASSWORD@a:26379,b:26379,c:26379/0?master_name=fleet&sentinel_password=PASSWORD",
    "unix": "unix://:PASSWORD@/run/redis/redis.sock?db=0",
}
_TLS_KEYS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_QUERY_KEYS = {
    "redis": frozenset[str](),
    "rediss": _TLS_KEYS,
    "sentinel": _TLS_KEYS | {"master_name", "sentinel_username", "sentinel_password"},
    "unix": frozenset({"db"}),
}
_DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379}


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """Where the server is and how to log in. Its repr and str hold no secret; ``url`` and ``broker_url`` do."""

    #: As it was given, secrets included: for a child's environment, never for an argument or a log.
    url: str
    #: redis, rediss, sentinel or unix.
    scheme: str
    #: (host, port) of the server, or of every sentinel; empty for a Unix socket.
    hosts: tuple[tuple[str, int], ...]
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    master_name: str = ""
    sentinel_login: Mapping[str, str] = field(default_factory=dict)
    #: ssl_ca_certs, ssl_certfile, ssl_keyfile as far as they were given; they only matter where ``encrypted``.
    tls_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS: rediss always, sentinel when a certificate file was named."""
        return self.scheme == "rediss" or bool(self.tls_files)

    @property
    def redacted(self) -> str:
        """The address for people and logs: no password in it."""
        login = (
            f"{self.username or ''}:***@" if self.password is not None else f"{self.username}@" * bool(self.username)
        )
        if self.scheme == "unix":
            return f"unix://{login}{self.path}?db={self.db}"
        query = f"?master_name={self.master_name}" if self.master_name else ""
        return f"{self.scheme}://{login}{','.join(_host_port(*host) for host in self.hosts)}/{self.db}{query}"

    def __repr__(self) -> str:
        return f"ServerAddress({self.redacted!r})"

    def __str__(self) -> str:
        return self.redacted

    @property
    def broker_url(self) -> str:
        """The URL as kombu wants it, secrets included; several sentinels are URLs joined by semicolons."""
        login = ""
        if self.username or self.password is not None:
            login = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        if self.scheme == "unix":
            return f"redis+socket://{login}{quote(self.path)}?virtual_host={self.db}"
        return ";".join(f"{self.scheme}://{login}{_host_port(*host)}/{self.db}" for host in self.hosts)

    @property
    def broker_options(self) -> dict[str, Any]:
        """``transport_options`` and ``use_ssl`` (None: no TLS) for kombu.Connection and Celery's broker settings.

        Both matter: without ``use_ssl`` kombu checks no certificate, without a timeout a publish can wait for ever.
        """
        options: dict[str, Any] = {
            "socket_timeout": REPLY_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_INTERVAL_S,
        }
        if self.scheme == "sentinel":
            options |= {"master_name": self.master_name, "sentinel_kwargs": self._sentinel_options()}
        return {"transport_options": options, "use_ssl": self._tls_options() or None}

    def connect(self, **options: Any) -> redis.Redis:
        """A redis-py client of the server, or of the sentinels' present master; nothing is sent yet.

        A command that meets a broken connection is sent again up to five times (about 5 s): whatever is sent through it
        must bear being done twice. Replies are bytes.

        Args:
            **options: keywords of redis.Redis that differ from the ones here (socket_timeout in seconds, client_name).
        """
        options = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            # RESP2 and RESP3 cost the same to parse (130 us for a claim of 8 batches), RESP3 more to connect.
            "protocol": 2,
            "socket_timeout": REPLY_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_INTERVAL_S,
            "retry": ServerRetry(),
            **({"ssl": True, **self._tls_options()} if self.encrypted else {}),
            **options,
        }
        if self.scheme == "unix":
            # Its connection class knows no such keyword.
            options.pop("socket_keepalive")
            return redis.Redis(unix_socket_path=self.path, **options)
        if self.scheme == "sentinel":
            sentinel = Sentinel(list(self.hosts), sentinel_kwargs=self._sentinel_options())  # type: ignore[no-untyped-call]
            client: redis.Redis = sentinel.master_for(self.master_name, **options)  # type: ignore[no-untyped-call]
            return client
        ((host, port),) = self.hosts
        return redis.Redis(host=host, port=port, **options)

    def _sentinel_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "socket_timeout": 1.0,
            "socket_connect_timeout": 1.0,
            # Who asks the sentinels asks them all again anyway. By default redis-py stays 8 s with one that is away.
            "retry": Retry(NoBackoff(), 0),
            **self.sentinel_login,
        }
        return options | ({"ssl": True, **self._tls_options()} if self.encrypted else {})

    def _tls_options(self) -> dict[str, Any]:
        return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **self.tls_files} if self.encrypted else {}


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(url: str, origin: str = "server address") -> ServerAddress:
    """Reads a server's URL; the forms are ``redis``, ``rediss``, ``sentinel`` and ``unix``.

    Nothing of the URL's own text is repeated in an error, because a misplaced character may have moved a password.

    Args:
        url: as a user wrote it; white space around it is ignored.
        origin: where it was read, for the error.

    Raises:
        ConfigError: the URL is wrong, or a file that it names does not exist.
    """
    url = url.strip()
    scheme = url.partition("://")[0]
    if scheme not in _FORMS or "://" not in url:
        raise ConfigError(f"{origin}: it must start with {'://, '.join(_FORMS)}://; for example {_FORMS['redis']}")
    try:
        return _parse(url, scheme)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}; for example {_FORMS[scheme]}") from None


def _parse(url: str, scheme: str) -> ServerAddress:
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may repeat the password
        raise ValueError("the part between // and / cannot be read") from None
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise ValueError(
            "a character of the password must be written as its code (/ as %2F, ? as %3F, # as %23, @ as %40)"
        )
    query = _query(parts, scheme)
    login, _, where = parts.netloc.rpartition("@")
    username, colon, password = login.partition(":")
    common: dict[str, Any] = {
        "url": url,
        "scheme": scheme,
        "username": unquote(username) or None,
        "password": unquote(password) if colon else None,
    }
    if scheme == "unix":
        if where or len(parts.path) < 2:
            raise ValueError("a Unix socket's absolute path must follow the // or the @")
        return ServerAddress(**common, hosts=(), path=unquote(parts.path), db=_database(query.get("db", "0")))
    if scheme == "sentinel" and not query.get("master_name"):
        raise ValueError("master_name is missing")
    if scheme != "sentinel" and "," in where:
        raise ValueError("several hosts are only possible with sentinel://")
    for key in _TLS_KEYS & query.keys():
        if not Path(query[key]).is_file():
            raise ValueError(f"there is no file {query[key]} ({key})")
    return ServerAddress(
        **common,
        hosts=tuple(_host(host, _DEFAULT_PORTS[scheme]) for host in where.split(",")),
        db=_database(parts.path.removeprefix("/") or "0"),
        master_name=query.get("master_name", ""),
        sentinel_login={
            key.removeprefix("sentinel_"): query[key]
            for key in ("sentinel_username", "sentinel_password")
            if key in query
        },
        tls_files={key: query[key] for key in sorted(_TLS_KEYS & query.keys())},
    )


def _query(parts: SplitResult, scheme: str) -> dict[str, str]:
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if query.keys() - _QUERY_KEYS[scheme]:
        known = ", ".join(sorted(_QUERY_KEYS[scheme])) or "nothing"
        raise ValueError(f"after the ? {scheme}:// takes {known}")
    return query


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::(\d{1,5}))?", text)
    if not match:
        raise ValueError("a host must be NAME or NAME:PORT")
    port = int(match[3] or default_port)
    if not 0 < port < 65536:
        raise ValueError("a port must be from 1 to 65535")
    return match[1] or match[2], port


def _database(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text):
        raise ValueError("the database must be a number from 0 on")
    return int(text)


def address_from_environment(
    environ: Mapping[str, str] = os.environ, url_file: Path = SERVER_URL_FILE
) -> ServerAddress:
    """The server that this process is to use: REDIS_URL, else the file named by REDIS_URL_FILE, else ``url_file``.

    Raises:
        ConfigError: none of the three is there, or its URL is wrong, or NATIX_FLEET_WAIT_S is no number.
    """
    if url := environ.get("REDIS_URL"):
        return parse_address(url, "REDIS_URL")
    named = environ.get("REDIS_URL_FILE")
    # honcho starts a Procfile's lines all at once: its workers wait until the server there has written its URL.
    wait_until_s = time.monotonic() + _wait_s(environ)
    while not named and time.monotonic() < wait_until_s and not is_live(url_file):
        time.sleep(0.1)
    origin, path = ("REDIS_URL_FILE", Path(named)) if named else (str(url_file), url_file)
    try:
        return parse_address(path.read_text(encoding="utf-8"), origin)
    except (OSError, UnicodeDecodeError) as error:
        if named:
            cause = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"REDIS_URL_FILE: cannot read {path}: {cause}") from None
    raise ConfigError(
        f"no Redis server is known: set REDIS_URL ({_FORMS['redis']}), or REDIS_URL_FILE to a file that holds it, "
        f"or run `natix-fleet server` here, which writes {url_file}"
    )


def _wait_s(environ: Mapping[str, str]) -> float:
    text = environ.get("NATIX_FLEET_WAIT_S") or "0"
    if not re.fullmatch(r"\d{1,6}(\.\d*)?", text):
        raise ConfigError(f"NATIX_FLEET_WAIT_S {text!r} is no number of seconds; for example 30")
    return float(text)


def is_live(url_file: Path) -> bool:
    """Whether a server listens where the file says; one that was killed leaves its file behind."""
    try:
        url = url_file.read_text(encoding="utf-8")
        socket.create_connection(parse_address(url).hosts[0], 1.0).close()
        # Once more: a new server takes away what an older one left, before it listens.
        return url_file.read_text(encoding="utf-8") == url
    except (OSError, ValueError, IndexError, ConfigError):
        return False
