"""A VLM server asleep: how long it takes, what it gives back of the GPU, how soon it answers again.

Only a GPU gives anything back, of a server started with --enable-sleep-mode; all want VLLM_SERVER_DEV_MODE=1.
"""

import base64
import time

import httpx2
from msgspec import Struct

from configs.errors import ServerError
from ops.bench.noise import fresh, jpeg
from ops.bench.vlm_server import Served, gpu_memory_bytes
from workers.question import Question

_WITHIN_S = 300.0


class Slept(Struct, frozen=True):
    """Once to sleep and back."""

    #: 1: weights wait in host memory; 2: they are dropped, and whoever wakes it must load them again.
    level: int
    sleep_s: float
    wake_s: float
    #: From the end of wake_up to one answer.
    answer_s: float
    #: Of the GPU, by nvidia-smi: all processes.
    awake_bytes: int
    asleep_bytes: int
    #: Host memory of the server's processes.
    host_awake_bytes: int
    host_asleep_bytes: int


def measure(server: Served, device: str, question: Question, side_px: int, level: int) -> Slept:
    """Sleeps, wakes, and is asked about one new photo.

    Raises:
        ServerError: the server refuses, or does not answer afterwards.
    """
    asked = question.about(base64.b64encode(jpeg(fresh(1), side_px)))
    awake, host_awake = gpu_memory_bytes(device), server.resident_bytes()
    sleep_s = _post(f"{server.url}/sleep?level={level}")
    asleep, host_asleep = gpu_memory_bytes(device), server.resident_bytes()
    wake_s = _post(f"{server.url}/wake_up")
    answer_s = _post(f"{server.url}/v1/chat/completions", asked)
    return Slept(level, sleep_s, wake_s, answer_s, awake, asleep, host_awake, host_asleep)


def text(slept: Slept) -> str:
    """One line."""
    return (
        f"level {slept.level}: asleep in {slept.sleep_s:.2f} s, awake in {slept.wake_s:.2f} s, first answer after "
        f"{slept.answer_s:.2f} s; GPU {slept.awake_bytes / 1e9:.1f} -> {slept.asleep_bytes / 1e9:.1f} GB, "
        f"host {slept.host_awake_bytes / 1e9:.1f} -> {slept.host_asleep_bytes / 1e9:.1f} GB"
    )


def _post(url: str, content: bytes = b"") -> float:
    """Seconds until the answer, which must be 200."""
    begun_s = time.monotonic()
    try:
        reply = httpx2.post(
            url, content=content, headers={"Content-Type": "application/json"}, timeout=_WITHIN_S, trust_env=False
        )
    except httpx2.RequestError as error:
        raise ServerError(f"{url}: {type(error).__name__}: {error}") from None
    if reply.status_code != 200:
        raise ServerError(f"{url} says {reply.status_code}: {reply.text[:200]}")
    return time.monotonic() - begun_s
