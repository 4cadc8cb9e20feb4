"""What the benchmark of VLM tiers found, and the file where it stands: var/vlm.json, which is others' as well."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from configs.errors import DiskError
from ops.bench.vlm_fleet import FleetRate
from ops.bench.vlm_load import Heard
from ops.bench.vlm_server import GpuUse, Variant
from ops.bench.vlm_sleep import Slept


class Point(Struct, frozen=True):
    """A bare run in one way, at one number of questions at a time."""

    way: str
    in_flight: int
    heard: Heard
    gpu: GpuUse
    #: Of the operations that the device can do: by what must be computed, and by two for each parameter and token.
    share: float
    share_by_parameters: float
    #: From caches, per question's tokens or photos.
    prefix_hits: float
    photo_hits: float
    #: Of the server's processes, in cores kept busy, by their name.
    cores: dict[str, float]


class Pair(Struct, frozen=True):
    """The same server bare and through the fleet, one after the other."""

    bare: Point
    fleet: FleetRate
    ratio: float


class Tried(Struct, frozen=True):
    """One variant."""

    variant: Variant
    argv: tuple[str, ...] = ()
    ready_s: float = 0.0
    points: tuple[Point, ...] = ()
    pairs: tuple[Pair, ...] = ()
    #: Medians over the pairs.
    bare_per_s: float = 0.0
    fleet_per_s: float = 0.0
    ratio: float = 0.0
    sleeps: tuple[Slept, ...] = ()
    error: str = ""


class Keep:
    """var/vlm.json: what others wrote there stays, what was measured is there at once."""

    def __init__(self, path: Path, section: Mapping[str, Any], name: str) -> None:
        self._path = path
        self._section = dict(section)
        self._name = name
        self._tried: dict[str, Tried] = {}

    def put(self, tried: Tried) -> None:
        """Writes one variant into the file.

        Raises:
            DiskError: it cannot be written.
        """
        self._tried[tried.variant.name] = tried
        whole: dict[str, Any] = {}
        with suppress(OSError):
            whole = json.loads(self._path.read_text())
        section = whole.setdefault("bench", {}).setdefault(self._name, {})
        section.update(self._section)
        section.setdefault("variants", {}).update(msgspec.to_builtins(self._tried))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            making = self._path.with_suffix(".part")
            making.write_text(json.dumps(whole, indent=2) + "\n")
            making.replace(self._path)
        except OSError as error:
            raise DiskError(f"cannot write {self._path}: {error.strerror}") from error


def point_text(point: Point) -> str:
    """One line."""
    heard = point.heard
    least, most = min(heard.photos_per_s), max(heard.photos_per_s)
    windows = f"{least:,.1f}-{most:,.1f} in {len(heard.photos_per_s)} windows"
    cores = ", ".join(f"{name} {cores:.1f}" for name, cores in sorted(point.cores.items(), key=lambda one: -one[1]))
    gpu = f"GPU {point.gpu.busy_percent:.0f} % {point.gpu.watts:.0f} W; " if point.gpu.watts else ""
    failed = f"; {heard.failed} FAILED: {heard.failure}" if heard.failed else ""
    return (
        f"{point.way}, {point.in_flight} in flight: {heard.rate:,.1f}/s ({windows}), "
        f"{point.share:.1%} of the arithmetic ({point.share_by_parameters:.1%} by parameters); "
        f"p50 {heard.p50_ms:,.0f} ms, p99 {heard.p99_ms:,.0f} ms; {heard.prompt_tokens} tokens; {gpu}"
        f"hits: prefix {point.prefix_hits:.2%}, photos {point.photo_hits:.2%}; "
        f"cores: clients {heard.client_cores:.2f}, {cores}{failed}"
    )
