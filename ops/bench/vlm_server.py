"""A VLM server under measurement: started with flags to try, watched, its counters read, its CPU told by process."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import httpx2
from msgspec import Struct

from configs.errors import BusyError, ServerError, UsageError
from ops.server import port_is_free
from ops.tied import tied
from ops.vllm_server import ServerCommand

_STOP_S = 30.0
_SAMPLE_MS = 200
#: Served from what the server remembered of an earlier photo or prompt, and how much was looked up.
COUNTERS = (
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:mm_cache_hits_total",
    "vllm:mm_cache_queries_total",
    "vllm:prompt_tokens_total",
    "vllm:num_preemptions_total",
)


class Variant(Struct, frozen=True):
    """A way to start the server: flags and environment beside the usual ones."""

    name: str
    flags: tuple[str, ...] = ()
    env: dict[str, str] = {}


def parse_variant(text: str) -> Variant:
    """``NAME`` or ``NAME: --flag value VARIABLE=value``; words are split as a shell does.

    Raises:
        UsageError: it has no name, or a quote is not closed.
    """
    name, _, rest = text.partition(":")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"--variant {text!r}: {error}") from None
    if not name.strip():
        raise UsageError(f"--variant {text!r} begins with its name and a colon")
    env = [word for word in words if word.partition("=")[0].isupper() and "=" in word]
    flags = tuple(word for word in words if word not in env)
    return Variant(name.strip(), flags, dict(word.split("=", 1) for word in env))


class Served(Struct, frozen=True):
    """A server that answers."""

    url: str
    pid: int
    ready_s: float
    log: Path

    def counters(self) -> Counter[str]:
        """Of COUNTERS, summed over its processes."""
        text = httpx2.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        totals: Counter[str] = Counter()
        for line in text.splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in COUNTERS:
                totals[name] += float(line.rpartition(" ")[2])  # type: ignore[assignment] # counts, written as floats
        return totals

    def cpu_s(self) -> Counter[str]:
        """CPU time so far of its processes by what they call themselves, numbers left out."""
        tick_hz = os.sysconf("SC_CLK_TCK")
        used: Counter[str] = Counter()
        for pid, (_, ticks) in _tree(self.pid).items():
            used[_title(pid)] += ticks / tick_hz  # type: ignore[assignment] # seconds are no whole number
        return used

    def resident_bytes(self) -> int:
        """Host memory of all its processes; what they share is shared out among them."""
        total = 0
        for pid in _tree(self.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


@contextmanager
def served(command: ServerCommand, log: Path, within_s: float) -> Iterator[Served]:
    """A server, from its health to its end.

    Args:
        command: how it is started, and where it will be.
        log: gets what it writes.
        within_s: it is healthy by then.

    Raises:
        BusyError: somebody has its port, and would be measured in its place.
        ServerError: it ended or did not become healthy; with the end of its log.
    """
    if not port_is_free(urlsplit(command.url).port or 80):
        raise BusyError(f"somebody has the port of {command.url}: end that, or choose another --port")
    begun_s = time.monotonic()
    with log.open("wb") as out:
        out.write(f"{shlex.join(command.argv)}\n".encode())
        out.flush()
        process = subprocess.Popen(  # noqa: S603 - the server's own command
            tied(command.argv), env={**os.environ, **command.env}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while not healthy(command.url):
            if process.poll() is not None or time.monotonic() - begun_s > within_s:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
                how = "did not become healthy" if process.poll() is None else f"ended with {process.returncode}"
                raise ServerError(f"the VLM server {how} after {time.monotonic() - begun_s:.0f} s:\n{tail}")
            time.sleep(0.25)
        yield Served(command.url, process.pid, time.monotonic() - begun_s, log)
    finally:
        _stop(process)


def healthy(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx2.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx2.RequestError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Its whole session, so that no engine of it keeps the GPU."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tree(root: int) -> dict[int, tuple[int, int]]:
    """A process and all below it: parent, and clock ticks of CPU."""
    every: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            every[int(folder.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    below = {root} & every.keys()
    while more := {pid for pid, (parent, _) in every.items() if parent in below} - below:
        below |= more
    return {pid: every[pid] for pid in below}


def _title(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    first = words[0].decode(errors="replace")
    if first.startswith("VLLM::"):
        return first[6:].rstrip("0123456789_ ").partition("_")[0] or first
    return "serve" if b"serve" in words else "other"


class GpuUse(Struct, frozen=True):
    """Of one GPU, over a time: what nvidia-smi samples."""

    #: Share of the samples' time in which any kernel ran: not how full the device was.
    busy_percent: float = 0.0
    watts: float = 0.0
    memory_bytes: int = 0


@contextmanager
def watched_gpu(device: str, samples: Path) -> Iterator[None]:
    """Writes samples of a GPU to a file for as long as the context lasts; of a CPU none."""
    if device == "cpu":
        samples.write_text("")
        yield
        return
    asked = ["nvidia-smi", "--query-gpu=utilization.gpu,power.draw,memory.used", "--format=csv,noheader,nounits"]
    with samples.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - a device's number
            [*asked, f"--id={device[5:] or 0}", f"-lms={_SAMPLE_MS}"], stdout=out, stderr=sys.stderr
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def gpu_use(samples: Path) -> GpuUse:
    """Medians of what was sampled: its end and beginning, when little runs, do not count."""
    rows = []
    for line in samples.read_text().splitlines():
        try:
            busy, watts, mib = (float(word) for word in line.split(","))
        except ValueError:
            continue
        rows.append((busy, watts, mib))
    if not rows:
        return GpuUse()
    busy, watts, mib = (median(column) for column in zip(*rows, strict=True))
    return GpuUse(busy, watts, int(mib) * 2**20)


def gpu_memory_bytes(device: str) -> int:
    """What all processes hold of a GPU now; 0 of a CPU."""
    if device == "cpu":
        return 0
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={device[5:] or 0}"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout  # noqa: S603 - a device's number
    return int(said) * 2**20 if said.strip().isdigit() else 0
