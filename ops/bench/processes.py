"""Child processes of a benchmark, and what they cost."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from configs.errors import AccountError, ServerError

_READY_WITHIN_S = 60.0
#: A count that does not move for this long will not move any more.
_STILL_S = 30.0


class Measured(Struct, frozen=True):
    """One measured run; CPU of all its processes, the server's included."""

    images: int
    seconds: float
    cpu_s: float

    @property
    def images_per_s(self) -> float:
        """Images from first admission to last effect, a second of wall time."""
        return self.images / self.seconds

    @property
    def cpu_ms_per_image(self) -> float:
        """CPU time of all processes, an image."""
        return self.cpu_s * 1000 / self.images


@contextmanager
def started(
    commands: Mapping[str, Sequence[str]], env: Mapping[str, str], folder: Path, ready_variable: str
) -> Iterator[list[int]]:
    """Starts processes, waits until each wrote its ready file, and ends them in order.

    Raises:
        ServerError: one ended early or was not ready in time; with the end of its log.
    """
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, argv in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                children[name] = subprocess.Popen(  # noqa: S603 - our own modules
                    argv,
                    env={**os.environ, **env, ready_variable: str(folder / f"{name}.ready")},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        begun_s = time.monotonic()
        while missing := [name for name in children if not (folder / f"{name}.ready").exists()]:
            dead = [name for name in missing if children[name].poll() is not None]
            if dead or time.monotonic() - begun_s > _READY_WITHIN_S:
                name = (dead or missing)[0]
                tail = (folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise ServerError(f"benchmark process {name} is not ready:\n{tail}")
            time.sleep(0.05)
        yield [child.pid for child in children.values()]
    finally:
        for child in children.values():
            child.send_signal(signal.SIGTERM)
        for child in children.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_for_all(count: Callable[[], int], images: int, what: str) -> None:
    """Waits until ``count`` says ``images``.

    Raises:
        AccountError: it stood still for long; with how many came.
    """
    last, moved_s = -1, time.monotonic()
    while (now := count()) < images:
        if now != last:
            last, moved_s = now, time.monotonic()
        elif time.monotonic() - moved_s > _STILL_S:
            raise AccountError(f"{what}: {now:,} of {images:,} images came, and no more for {_STILL_S:g} s")
        time.sleep(0.005)


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time so far of running processes (Linux: /proc/PID/stat, in clock ticks)."""
    tick_hz = os.sysconf("SC_CLK_TCK")
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / tick_hz
