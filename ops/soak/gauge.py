"""What the processes of a fleet hold at one moment: memory, open files, threads; and the server by its own word."""

import time
from collections.abc import Mapping
from pathlib import Path

import redis
from msgspec import Struct

from configs.errors import ServerError

_MIB = 1 << 20


class Held(Struct, frozen=True):
    """What one process holds."""

    rss_mib: float
    open_files: int
    threads: int


class Sample(Struct, frozen=True):
    """All of it at one moment, counted from the first sample."""

    at_s: float
    processes: dict[str, Held]
    #: The server's used_memory: what its data take, without what its allocator keeps.
    used_mib: float


class Gauge:
    """Takes samples.

    Args:
        pids: by name, of processes that run until the last sample.
        server: asked for its own figure.
    """

    def __init__(self, pids: Mapping[str, int], server: redis.Redis) -> None:
        self._pids = pids
        self._server = server
        self._begun_s = time.monotonic()

    def sample(self) -> Sample:
        """One sample.

        Raises:
            ServerError: a process ended.
        """
        at_s = time.monotonic() - self._begun_s
        processes = {name: held(name, pid) for name, pid in self._pids.items()}
        return Sample(round(at_s, 3), processes, self._server.info("memory")["used_memory"] / _MIB)


def held(name: str, pid: int) -> Held:
    """What one process holds now (Linux: /proc).

    Raises:
        ServerError: it ended.
    """
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        # A process that ended, and that nobody asked about yet, has a status without memory.
        return Held(
            rss_mib=int(status["VmRSS"].split()[0]) / 1024,
            open_files=sum(1 for _ in (folder / "fd").iterdir()),
            threads=int(status["Threads"]),
        )
    except (KeyError, OSError) as error:
        raise ServerError(f"process {name} (pid {pid}) ended in the middle: see its log") from error
