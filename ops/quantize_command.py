"""natix-fleet quantize; its body is a call, as in ops.cli."""

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("key")
@click.option(
    "--precision", type=click.Choice(["fp8", "int8", "int4"]), required=True, help="Of the language model's weights."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--photos", type=click.Path(path_type=Path), help="A folder: int4 by GPTQ, and P before and after.")
@click.option("--samples", type=click.IntRange(1), default=256, show_default=True, help="Photos at most.")
def quantize(key: str, precision: Literal["fp8", "int8", "int4"], out: Path, photos: Path | None, samples: int) -> None:
    """Writes a checkpoint of the served model KEY in fewer bits, which vLLM loads without a flag."""
    from ops.quantize import print_quantised  # noqa: PLC0415 - a command imports what it needs

    print_quantised(key, precision, out, photos, samples)
