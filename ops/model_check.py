"""natix-fleet models check: one model, really loaded and really asked about a photo."""

import resource
import subprocess
import time
from pathlib import Path

import click
from PIL import Image

from configs.errors import ConfigError, PhotoError, ServerError, SourceError
from configs.model import ModelSpec, load_model
from configs.profile import Photos
from configs.serving import Server
from ops.models import size
from producers.intake import take
from producers.scenes import DEMO_SEEDS, render
from producers.sources import printable
from routing.decision import calibrate
from workers.device import pin
from workers.engines import AskedEngine, DeviceMemoryError, Engine, EngineAwayError, Runtime, Shot, build
from workers.photos import open_photo
from workers.served import RefusedError

#: A server that is not there is not waited for here as a worker would.
SERVER_S = 5.0


def check(key: str, path: Path | None, device: str) -> None:
    """Loads a model, asks it about one photo, and prints what it says and what it takes.

    Args:
        key: of the catalogue.
        path: of the photo; None: a scene with roadwork that the project draws.
        device: "cpu", "cuda:INDEX" or "cuda:GPU-UUID".

    Raises:
        ConfigError: the model cannot run here; says what it lacks.
        SourceError, PhotoError: the photo cannot be read.
        ServerError: the model is served, and its server is away.
    """
    spec = load_model(key)
    photo, shot = _read(path, spec.input_px) if path else _draw()
    engine = build(spec, Runtime(pin(device), max_batch=1, server=Server(start_within_s=SERVER_S)))
    taken_bytes = _taken_bytes(device)
    try:
        begun_s = time.monotonic()
        engine.load()
        loaded_s = time.monotonic()
        engine.warm_up()
        warm_s = time.monotonic()
        score = _score(engine, photo, shot)
        scored_s = time.monotonic()
    except DeviceMemoryError as error:
        raise ConfigError(f"model {key!r}: {device} has no memory left to score one photo: {error}") from None
    except EngineAwayError as error:
        raise ServerError(f"model {key!r} is away: {error}") from None
    click.echo(f"{spec.name} ({spec.engine}) on {device}, {printable(path) if path else 'a drawn scene with roadwork'}")
    click.echo(said(spec, score))
    if isinstance(engine, AskedEngine):
        click.echo(beside(engine.take_counts()))
    click.echo(
        f"loaded in {loaded_s - begun_s:.2f} s, warmed up in {warm_s - loaded_s:.2f} s, "
        f"scored in {1000 * (scored_s - warm_s):.1f} ms"
    )
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = f"memory: {size(peak_bytes)} of the host at its peak"
    if (now_bytes := _taken_bytes(device)) is not None and taken_bytes is not None:
        line += f", {size(max(now_bytes - taken_bytes, 0))} of {device}, by what it has less than before"
    click.echo(line)


def said(spec: ModelSpec, score: float | None) -> str:
    """A model's word on a photo, and what it is worth."""
    if score is None:
        return f"abstains: {spec.abstains or 'it has nothing to say of this photo'}"
    fitted = spec.calibrator.fitted_on
    worth = f"calibrated on {fitted}" if fitted else "no calibrator was fitted: this is no probability"
    return f"score {score:+.4f}, P(roadwork) {calibrate(score, spec.calibrator):.4f} ({worth})"


def beside(counts: dict[str, int]) -> str:
    """What a served model would have said instead, and why an answer was no vote."""
    why = "".join(f"; no vote: {name.removeprefix('no_vote_')}" for name in counts if name.startswith("no_vote_"))
    outside = counts.get("outside_ppm")
    known = "not known" if outside is None else f"{outside / 1e6:.4f}"
    return f"probability of all but yes and no: {known}{why}"


def _score(engine: Engine, photo: Image.Image, shot: Shot) -> float | None:
    prepared = engine.prepare(photo, shot)
    if prepared is None:
        return None
    try:
        (score,) = engine.score([prepared])
    except RefusedError as error:
        raise PhotoError("refused", f"the served model will not answer about this photo: {error}") from None
    return score


def _read(path: Path, input_px: int) -> tuple[Image.Image, Shot]:
    """A photo as a worker would get it: taken in, stored, decoded."""
    try:
        taken = take(path.read_bytes(), Photos())
    except OSError as error:
        raise SourceError(f"{printable(path)}: {error.strerror}") from None
    except PhotoError as error:
        raise PhotoError(f"{printable(path)}: {error}") from None
    return open_photo(taken.data, 2 * input_px), Shot(taken.size_px, taken.focal_px)


def _draw() -> tuple[Image.Image, Shot]:
    """The first scene of the demonstration that shows roadwork."""
    for seed in DEMO_SEEDS:
        scene, label = render(seed)
        if label:
            break
    return scene, Shot(scene.size)


def _taken_bytes(device: str) -> int | None:
    """Of a GPU's memory, by anybody; None: it is no GPU, or the driver does not say."""
    _, _, which = device.partition(":")
    if not which:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - pin() found such a GPU
            ["nvidia-smi", f"--id={which}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],  # noqa: S607 - where the driver put it
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return int(done.stdout) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
