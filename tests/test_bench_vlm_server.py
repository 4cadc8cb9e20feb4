"""A server under measurement is the benchmark's own, and ends with it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import BusyError
from ops.bench.vlm_server import served
from ops.server import free_port, port_is_free
from ops.vllm_server import ServerCommand

ROOT = Path(__file__).parents[1]

#: A server as far as its health: nothing else of it is asked here.
HEALTHY = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

#: A benchmark that has started one.
BENCHMARK = """
import sys, time
from pathlib import Path
from ops.bench.vlm_server import served
from tests.test_bench_vlm_server import command

with served(command(int(sys.argv[1])), Path(sys.argv[2]), 30.0) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def command(port: int) -> ServerCommand:
    """How such a server is started."""
    url = f"http://127.0.0.1:{port}"
    return ServerCommand("v", (sys.executable, "-c", HEALTHY, str(port)), {}, url, f"{url}/health")


def test_who_stands_on_the_port_is_not_measured(tmp_path: Path) -> None:
    """Whoever was left there would answer for the server that cannot start."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with (
            pytest.raises(BusyError, match=rf"has the port of http://127\.0\.0\.1:{port}"),
            served(command(port), tmp_path / "log", 30.0),
        ):
            pass
    assert not (tmp_path / "log").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a process is tied to another on Linux")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_the_benchmark(number: signal.Signals, tmp_path: Path) -> None:
    """Also where that is killed: a server that is left holds its GPU. It is told; how its engines end is vLLM's."""
    port = free_port()
    arguments = [sys.executable, "-c", BENCHMARK, str(port), str(tmp_path / "log")]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout
        server = int(benchmark.stdout.readline())
        assert not port_is_free(port)
        benchmark.send_signal(number)
    until_s = time.monotonic() + 10
    while not (gone := port_is_free(port)) and time.monotonic() < until_s:
        time.sleep(0.05)
    if not gone:
        os.kill(server, signal.SIGKILL)
    assert gone, "the server lives on"
