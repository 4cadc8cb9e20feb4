"""A real vLLM on this machine's processor, as a process of its own: python -m vllm.entrypoints.cli.main serve."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

#: Of a start: 25 s on two quiet cores, several times that beside other work.
START_S = 300.0
#: What a server on a processor without a hub needs to know. One GiB of KV cache is plenty for a small model.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def free_port() -> int:
    """One that nobody listens on at present."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def real_server(
    python: str,
    checkpoint: Path,
    name: str,
    log: Path,
    *,
    port: int = 0,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    pids: list[int] | None = None,
) -> Iterator[str]:
    """Its URL, for as long as the context lasts.

    Args:
        python: an interpreter that has vLLM.
        checkpoint: folder of the model.
        name: of the model, on the server.
        log: what the server writes.
        port: 0: a free one.
        arguments: flags beside the usual ones.
        env: added to its environment.
        pids: the server's is put there, which is that of its process group too.
    """
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(checkpoint), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--block-size", "32"]
    command += ["--max-model-len", "2048", "--max-num-seqs", "32", "--limit-mm-per-prompt", '{"image":2,"video":0}']
    environment = os.environ | ENVIRONMENT | dict(env or {})
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *arguments], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    if pids is not None:
        pids.append(process.pid)
    try:
        until_s = time.monotonic() + START_S
        while not healthy(url):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until_s, log.read_text()[-4000:]
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx2.get(f"{url}/health", timeout=1).status_code == 200
    except httpx2.RequestError:
        return False
