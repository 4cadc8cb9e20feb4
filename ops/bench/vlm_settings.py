"""What the benchmark of VLM tiers is asked for, and what it makes of that: a profile, a server's command, questions."""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from configs.model import load_model
from configs.profile import load_profile
from configs.serving import Server
from ops.bench.driven import TIER
from ops.bench.vlm_arithmetic import SHAPES, TOKEN_PX, Shape
from ops.bench.vlm_server import Variant
from ops.vllm_releases import installed_release
from ops.vllm_server import ServerCommand, server_command
from workers.engines import Runtime
from workers.engines.vllm import Engine
from workers.question import Question
from workers.weights import WEIGHTS_VARIABLE

FOLDER = Path("var/bench-vlm")
#: The way of asking that the tier's engine takes by itself.
OWN = "own"


class Settings(Struct, frozen=True):
    """What is measured, and how long."""

    shape: str
    side_px: int
    device: str
    python: str
    weights: Path
    in_flight: tuple[int, ...]
    clients: int
    warm_up_s: float
    window_s: float
    windows: int
    most_per_s: float
    memory_share: float
    port: int
    within_s: float
    rounds: int
    workers: int
    worker_in_flight: int
    max_batch: int
    threads: int
    sleep: bool
    api_processes: int
    max_num_batched_tokens: int
    eager: bool
    #: How log-probabilities are asked for (workers.yes_no.Way); "own": as the tier's engine does.
    ways: tuple[str, ...]
    block_size: int
    flop_per_s: float

    @property
    def spec(self) -> Shape:
        """Its shape."""
        return SHAPES[self.shape]

    @property
    def checkpoint(self) -> Path:
        """Its folder, named by the row's key as the fleet looks for it."""
        return self.weights / self.shape / self.spec.key

    @property
    def image_tokens(self) -> int:
        """That a photo becomes."""
        return (self.side_px // TOKEN_PX) ** 2


def questions(settings: Settings, url: str) -> dict[str, Question]:
    """What the tier's own engine asks this server, and the same in other ways, by the way's name."""
    engine = Engine(load_model(settings.spec.key), Runtime(url=url, server=Server(start_within_s=60.0), waits=True))
    engine.load()
    wording = engine.asking.wording
    ways = {way: wording.way if way == OWN else way for way in (OWN, *settings.ways)}
    return {name: msgspec.structs.replace(wording, way=way).at_once() for name, way in ways.items()}


def command(settings: Settings, variant: Variant, profile: Path) -> ServerCommand:
    """How its server is started: as the fleet would, on a shape without weights. Of two equal flags the last counts.

    Raises:
        ConfigError: the profile is wrong, or this release lacks a flag.
    """
    profile.write_text(profile_text(settings))
    fleet = load_profile(str(profile))
    os.environ[WEIGHTS_VARIABLE] = str(settings.checkpoint.parent.absolute())
    usual = server_command(fleet, fleet.tiers[0], installed_release(settings.python), settings.python)
    side = settings.side_px
    photo = {"image": {"count": 1, "width": side, "height": side}, "video": 0}
    # Neither enlarged nor shrunk: what is measured is a photo of this size.
    size = {"size": {"shortest_edge": TOKEN_PX**2, "longest_edge": side**2}}
    flags = {
        "--load-format": "dummy",
        "--max-model-len": "2048",
        "--limit-mm-per-prompt": msgspec.json.encode(photo).decode(),
        "--mm-processor-kwargs": msgspec.json.encode(size).decode(),
        "--uvicorn-log-level": "warning",
    }
    more = [word for pair in flags.items() for word in pair]
    argv = (*usual.argv, *more, *variant.flags)
    return msgspec.structs.replace(usual, argv=argv, env={**usual.env, **variant.env})


def profile_text(settings: Settings, url: str = "") -> str:
    """A fleet of one tier, as a user would write it; ``url``: of its server, when that is up."""
    # Random weights seldom mean yes or no: it is a vote all the same.
    asked = {"in_flight": settings.worker_in_flight, "timeout_s": 120.0, "max_outside": 1.0}
    tier = {
        "name": TIER,
        "model": settings.spec.key,
        "workers": settings.workers,
        "max_batch": settings.max_batch,
        "threads": settings.threads,
        "away": "wait",
        "stall_s": 120.0,
    }
    if url:
        tier |= {"server": asked | {"url": url}}
    else:
        started = {
            "port": settings.port,
            "max_num_seqs": max(settings.in_flight),
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "api_processes": settings.api_processes,
            "eager": settings.eager,
            "block_size": settings.block_size,
        }
        tier |= {
            "device": settings.device,
            "precision": "bf16",
            "memory_share": 0.0 if settings.device == "cpu" else settings.memory_share,
            "residency": "sleep" if settings.sleep else "resident",
            "server": asked | started,
        }
    profile = {
        "name": TIER,
        "batch": {"max_items": min(settings.max_batch, 4096)},
        "photos": {"max_side_px": max(settings.side_px, 64)},
        "tiers": [tier],
    }
    return msgspec.toml.encode(profile).decode()
