"""One engine, alone in a process, measured without the fleet: what the device can do. Run by ops.bench.engines.

``python -m ops.bench.bare ORDER.json``: writes what it measured, or its error, to the file that the order names.
"""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from configs.errors import ConfigError
from configs.model import ModelSpec, load_model
from ops.bench.noise import light_of, noise
from workers.device import pin
from workers.engines import DeviceMemoryError, Engine, Runtime, Shot, build
from workers.weights import WEIGHTS_VARIABLE

#: Distinct prepared inputs that the runs go round in; a cache that knows a photo again would have to hold them all.
_INPUTS_OF_A_BATCH = 4
#: What a photo is said to have been taken with: about 60 degrees of view, so that depth models take it.
_FOCAL_PX = 600.0


class Order(Struct, frozen=True):
    """What to measure."""

    key: str
    device: str
    #: Folder of the weights; a checkpoint at random weights is made there where there is none.
    weights: str
    #: Sizes of a batch to try.
    batches: tuple[int, ...]
    side_px: int
    seconds: float
    repeats: int
    #: Through torch.compile; only the largest batch, since each size is compiled by itself.
    compile: bool
    #: Where the result goes.
    result: str


class Speed(Struct, frozen=True):
    """Of one size of a batch; ``error`` when it could not be run."""

    batch: int
    compiled: bool
    images_per_s: float = 0.0
    #: Least and most of the repeats.
    between: tuple[float, float] = (0.0, 0.0)
    #: Most that torch held at once, weights included.
    torch_bytes: int = 0
    warm_up_s: float = 0.0
    error: str = ""


class Bare(Struct, frozen=True):
    """What was measured of one engine."""

    key: str
    load_s: float = 0.0
    #: Photos that one thread prepares, already decoded.
    prepared_per_s: float = 0.0
    #: What torch holds after loading, in the precision it runs in.
    held_bytes: int = 0
    #: What the driver says that this process holds, the CUDA context included.
    process_bytes: int = 0
    speeds: tuple[Speed, ...] = ()
    #: Of the photos that were scored first, how many had a score; the model abstained of the others.
    voted: str = ""
    error: str = ""


def measure(order: Order) -> Bare:
    """Measures one engine.

    Raises:
        ConfigError: it cannot be built or loaded.
    """
    device = pin(order.device)
    os.environ[WEIGHTS_VARIABLE] = order.weights
    spec = _spec(order, device)
    meter = _Meter(device)
    batches = sorted(order.batches)
    engine = build(spec, Runtime(device=device, max_batch=batches[-1]))
    begun_s = time.perf_counter()
    engine.load()
    load_s = time.perf_counter() - begun_s
    held_bytes = meter.held_bytes()
    prepared_per_s, inputs = _prepare(engine, batches[-1] * _INPUTS_OF_A_BATCH, order.side_px, light_of(spec))
    if inputs:
        scores = engine.score(inputs[: batches[0]])
        voted = f"{sum(score is not None for score in scores)} of {len(scores)}"
        if spec != load_model(order.key):
            voted = "0: its row names no class, measured with one"
        speeds = [_speed(engine, inputs, batch, order, meter) for batch in batches]
    else:
        voted, speeds = "none: no photo was taken", []
    process_bytes = meter.process_bytes()
    # An engine that is not on torch has nothing to compile.
    if order.compile and inputs and "torch" in sys.modules:
        del engine
        gc.collect()
        speeds.append(_compiled(spec, inputs, batches[-1], order, meter))
    return Bare(order.key, load_s, prepared_per_s, held_bytes, process_bytes, tuple(speeds), voted)


def _spec(order: Order, device: str) -> ModelSpec:
    """The row, with a checkpoint at random weights where there are none and its shape is known."""
    spec = load_model(order.key)
    if spec.folder.is_dir():
        return spec
    from ops.bench.shapes import SHAPES, put, with_a_class  # noqa: PLC0415 - torch, which the smallest models do without

    spec = with_a_class(spec)
    if spec.key in SHAPES:
        put(spec, Path(order.weights), device)
    return spec


def _prepare(engine: Engine, count: int, side_px: int, light: float) -> tuple[float, list[Any]]:
    """Photos a second through prepare() on one thread, and what it made of them."""
    shot = Shot(size_px=(side_px, side_px), focal_px=_FOCAL_PX)
    photos = [noise(seed, side_px, light) for seed in range(count)]
    begun_s = time.perf_counter()
    inputs = [engine.prepare(photo, shot) for photo in photos]
    took_s = time.perf_counter() - begun_s
    return count / took_s, [one for one in inputs if one is not None]


def _compiled(spec: ModelSpec, inputs: Sequence[Any], batch: int, order: Order, meter: "_Meter") -> Speed:
    try:
        engine = build(spec, Runtime(device=meter.device, max_batch=batch, compile=True))
        engine.load()
    except ConfigError as error:
        return Speed(batch, compiled=True, error=str(error))
    return _speed(engine, inputs, batch, order, meter, compiled=True)


def _speed(
    engine: Engine, inputs: Sequence[Any], batch: int, order: Order, meter: "_Meter", *, compiled: bool = False
) -> Speed:
    """Images a second at one size of a batch: the median of the repeats, each of an equal share of the seconds."""
    meter.begin()
    begun_s = time.perf_counter()
    try:
        if compiled:
            engine.warm_up()
        _work(engine)(inputs[:batch])
        meter.wait()
        warm_up_s = time.perf_counter() - begun_s
        rates = [_rate(engine, inputs, batch, order.seconds / order.repeats, meter.wait) for _ in range(order.repeats)]
    except DeviceMemoryError as error:
        return Speed(batch, compiled, error=f"no memory: {error}")
    except Exception as error:
        if not compiled:
            raise
        # The compiler raises what it likes; that this model cannot be compiled is the finding.
        return Speed(batch, compiled, error=_line(error))
    return Speed(batch, compiled, median(rates), (min(rates), max(rates)), meter.most_bytes(), warm_up_s)


def _work(engine: Engine) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What is timed: score(), or what a model without a vote is there for."""
    work: Callable[[Sequence[Any]], Sequence[Any]] = getattr(engine, "measure", engine.score)
    return work


def _rate(engine: Engine, inputs: Sequence[Any], batch: int, seconds: float, wait: Callable[[], None]) -> float:
    work = _work(engine)
    places = range(0, len(inputs) - batch + 1, batch)
    scored = 0
    begun_s = time.perf_counter()
    while True:
        for start in places:
            scored += len(work(inputs[start : start + batch]))
            wait()
            took_s = time.perf_counter() - begun_s
            if took_s >= seconds:
                return scored / took_s


class _Meter:
    """Reads a device's memory; on a CPU there is none to read."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._cuda: Any = None
        if device != "cpu":
            import torch  # noqa: PLC0415 - only where a GPU is measured

            self._cuda = torch.cuda

    def begin(self) -> None:
        if self._cuda:
            self._cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if self._cuda:
            self._cuda.synchronize()

    def held_bytes(self) -> int:
        return int(self._cuda.memory_allocated()) if self._cuda else 0

    def most_bytes(self) -> int:
        return int(self._cuda.max_memory_allocated()) if self._cuda else 0

    def process_bytes(self) -> int:
        """Of this process; where the driver does not know it by its id (a container), of all on its device."""
        if not self._cuda:
            return 0
        free, total = self._cuda.mem_get_info()
        asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout  # noqa: S603 - fixed words
        mine = [line.split(",")[1] for line in listed.splitlines() if line.split(",")[0].strip() == str(os.getpid())]
        return sum(int(mib) for mib in mine if mib.strip().isdigit()) * 2**20 or int(total - free)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def main() -> None:
    """Measures what the order says; an error is a result too."""
    order = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    try:
        measured = measure(order)
    except Exception as error:  # noqa: BLE001 - it becomes this model's row
        measured = Bare(order.key, error=_line(error))
    Path(order.result).write_bytes(msgspec.json.encode(measured))


if __name__ == "__main__":
    main()
