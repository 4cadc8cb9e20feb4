"""What a press saves and costs: python -m ops.bench.kvpress; var/kvpress.json and tables.

Random weights: KV tokens, bytes and seconds are what they would be, and P says only that something changed. It runs in
the interpreter that NATIX_FLEET_PYTHON_KVPRESS names. A real shape wants a GPU: --shape 4b --device cuda:0.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from configs.errors import ConfigError, FleetError
from ops.bench.vlm_arithmetic import PATCH_PX, SHAPES, Shape
from routing.command import run_command
from routing.logs import configure_logging

MEASURE = Path(__file__).with_name("kvpress_measure.py")
VARIABLE = "NATIX_FLEET_PYTHON_KVPRESS"
PRESSES = "expected-attention,snapkv,streaming-llm,knorm,tova,keydiff"
#: Of a number in bf16.
_BYTES = 2
_TOKEN_PX = 2 * PATCH_PX


def kv_bytes(shape: Shape, tokens: int) -> int:
    """Of keys and values in bf16: tokens x layers x 2 x KV heads x head dimension x 2 bytes."""
    return tokens * shape.layers * 2 * shape.kv_heads * shape.head_dim * _BYTES


def image_tokens(width_px: int, height_px: int) -> int:
    """Of a photo whose sides are multiples of 32 px."""
    return (width_px // _TOKEN_PX) * (height_px // _TOKEN_PX)


@click.command(help=__doc__)
@click.option("--shape", type=click.Choice(list(SHAPES)), default="tiny", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--sides-px", default="224,640", show_default=True, help="Of square photos.")
@click.option("--presses", default=PRESSES, show_default=True)
@click.option("--ratios", default="0.25,0.5,0.75,0.9", show_default=True, help="Shares of the photo's tokens removed.")
@click.option("--questions", default=16, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/kvpress.json"), show_default=True)
def main(
    shape: str, device: str, sides_px: str, presses: str, ratios: str, questions: int, repeats: int, out: Path
) -> None:
    """Measures, writes and prints."""
    python = os.environ.get(VARIABLE)
    if not python:
        raise ConfigError(f"set {VARIABLE} to the bin/python of an environment with ops/environments/kvpress.txt")
    asked = {
        "shape": shape,
        "device": device,
        "dtype": "float32" if device == "cpu" else "bfloat16",
        "sides_px": [int(side) for side in sides_px.split(",")],
        "presses": presses.split(","),
        "ratios": [float(ratio) for ratio in ratios.split(",")],
        "questions": questions,
        "repeats": repeats,
    }
    done = subprocess.run(  # noqa: S603 - the interpreter that the user named
        # -P: this file is called like the library.
        [python, "-P", str(MEASURE)],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise FleetError(f"{python} ended with status {done.returncode}: its reason is above")
    figures = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode({"asked": asked, "figures": figures})))
    console = Console(width=120)
    console.print(json.dumps({**asked, **figures[0]}, indent=None))
    rows = [one for one in figures if one["kind"] == "press"]
    console.print(_measured(rows, questions), _left_out([one for one in figures if one["kind"] == "left out"]))
    console.print(_arithmetic())
    console.print(f"random weights, mechanism only; all figures: {out}")


def _measured(rows: Sequence[dict[str, Any]], questions: int) -> Table:
    table = Table(
        "px", "press", "removed", "KV tokens", "KV bytes", "photo ms", "1 q. ms", f"{questions} q. ms", "P moves"
    )
    for row in rows:
        table.add_row(
            str(row["side_px"]),
            row["press"],
            f"{row['ratio']:.2f}",
            f"{row['tokens']} > {row['kept']:.0f}",
            f"{row['bytes_before']:,} > {row['bytes_after']:,}",
            *(f"{1000 * row[what]:.1f}" for what in ("read_s", "one_s", "all_s")),
            f"{row['moved']:.4f}" if "moved" in row else "",
        )
    return table


def _left_out(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("not offered", "what comes of it")
    for row in rows:
        table.add_row(row["press"], row["says"])
    return table


def _arithmetic() -> Table:
    table = Table(
        "model, KV cache in bf16", "a token", "224 x 224", "640 x 640", "1920 x 1088", "60 frames of 640 x 640"
    )
    for name, shape in SHAPES.items():
        sizes = (
            1,
            image_tokens(224, 224),
            image_tokens(640, 640),
            image_tokens(1920, 1088),
            60 * image_tokens(640, 640),
        )
        table.add_row(
            f"Qwen3-VL {name.upper()}" if name != "tiny" else "tiny", *(f"{kv_bytes(shape, n):,}" for n in sizes)
        )
    return table


if __name__ == "__main__":
    configure_logging("bench", "warning")
    run_command(main, "python -m ops.bench.kvpress")
