# ruff: noqa: T201 # a command of its own: it prints its figures
"""Measures presses in the interpreter that has kvpress; started by ops.bench.kvpress, which says what by JSON.

On standard input: ``shape`` (a key of ops.bench.vlm_arithmetic.SHAPES), ``device``, ``dtype``, ``sides_px``,
``presses``, ``ratios``, ``questions``, ``repeats``. On standard output one line of JSON a figure.
"""

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import kvpress  # type: ignore[import-not-found]
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from configs.model import ModelSpec
from configs.prompt import load_prompt
from configs.serving import Server
from ops.bench.vlm_arithmetic import SHAPES
from ops.bench.vlm_shape import write
from workers.engines import Runtime, Shot
from workers.engines.kvpress import Engine
from workers.engines.kvpress_presses import LEFT_OUT

QUESTION = load_prompt("roadwork-1")


def main() -> None:
    """One figure a line, as it is known."""
    asked = json.load(sys.stdin)
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    device = asked["device"]
    with tempfile.TemporaryDirectory() as folder:
        write(folder, dict(SHAPES[asked["shape"]].config()), QUESTION, (32 * 32, 4096 * 32 * 32))
        with torch.device(device):
            torch.set_default_dtype(getattr(torch, asked["dtype"]))
            model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder)).eval()
            torch.set_default_dtype(torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
    said = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    if device != "cpu":
        said["gpu"] = torch.cuda.get_device_name()
    print(json.dumps({"kind": "machine", **said}), flush=True)

    def engine_of(side_px: int, **options: Any) -> Engine:
        spec = ModelSpec(
            key="qwen3-vl-4b-kvpress",
            state="shape",
            reason="random weights",
            input_px=side_px,
            options={**options, "questions": [f"{number} {QUESTION}" for number in range(asked["questions"])]},
        )
        engine = Engine(spec, Runtime(device=device, server=Server(max_outside=1.0)))
        engine.put(model, processor)
        return engine

    for side_px in asked["sides_px"]:
        base = measure(engine_of(side_px, press="none"), side_px, asked["repeats"])
        print(json.dumps({"kind": "press", "side_px": side_px, "press": "none", "ratio": 0.0, **base}), flush=True)
        for press in asked["presses"]:
            for ratio in asked["ratios"]:
                found = measure(engine_of(side_px, press=press, compression_ratio=ratio), side_px, asked["repeats"])
                moved = max(abs(a - b) for a, b in zip(found["p"], base["p"], strict=True))
                row = {"side_px": side_px, "press": press, "ratio": ratio, **found, "moved": moved}
                print(json.dumps({"kind": "press", **row}), flush=True)
    for name in sorted(LEFT_OUT):
        word = tried(name, engine_of(asked["sides_px"][-1], press="none"), asked["sides_px"][-1])
        print(json.dumps({"kind": "left out", "press": name, "says": word}), flush=True)


def measure(engine: Engine, side_px: int, repeats: int) -> dict[str, Any]:
    """KV cache, P of every question, and median seconds of a photo, of one question and of all."""
    picture = engine.prepare(noise(side_px), Shot())
    with torch.inference_mode():
        read_s, prefix = timed(lambda: engine.look(picture), repeats)
        one_s, _ = timed(lambda: engine.ask(prefix, engine.suffixes[:1]), repeats)
        all_s, answers = timed(lambda: engine.ask(prefix, engine.suffixes), repeats)
    yes, no = (answers[:, sorted(ids)].logsumexp(-1) for ids in (engine.words.yes, engine.words.no))
    before, after = prefix.bytes
    return {
        "tokens": prefix.tokens,
        "kept": sum(prefix.kept) / len(prefix.kept),
        "bytes_before": before,
        "bytes_after": after,
        "question_tokens": len(engine.suffixes[0]),
        "read_s": read_s,
        "one_s": one_s,
        "all_s": all_s,
        "p": (yes - no).sigmoid().tolist(),
    }


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds, the first call apart, and what the last one gave."""
    times = []
    for _ in range(repeats + 1):
        begun_s = time.perf_counter()
        found = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun_s)
    return median(times[1:]), found


def tried(name: str, engine: Engine, side_px: int) -> str:
    """What comes of a press that is not offered, made and used as the library's examples do."""
    kinds = {one.removesuffix("Press").lower(): one for one in dir(kvpress) if one.endswith("Press")}
    kind = getattr(kvpress, kinds[name.replace("-", "")])
    inner = kvpress.KnormPress(0.5)
    known = {
        "press": inner,
        "base_press": inner,
        "prefilling_press": inner,
        "presses": [inner],
        "compression_ratio": 0.5,
        "compression_ratios": [0.5] * 99,
        "key_channel_compression_ratio": 0.5,
        "head_compression_ratio": 0.5,
        "threshold": 0.0,
    }
    try:
        press = kind(**{one: value for one, value in known.items() if one in signature(kind).parameters})
        if name in {"critical-adakv", "adakv"}:
            press.compression_ratio = 0.5
        engine.cutter.on = lambda _: press  # type: ignore[method-assign, assignment]
        with torch.inference_mode():
            prefix = engine.look(engine.prepare(noise(side_px), Shot()))
            engine.ask(prefix, engine.suffixes[:1])
    except Exception as error:  # noqa: BLE001 - the library's own words are what is asked for
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return str(prefix)


def noise(side_px: int) -> Image.Image:
    """A square of noise, always the same."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8))


if __name__ == "__main__":
    main()
