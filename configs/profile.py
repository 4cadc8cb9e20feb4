"""A profile says what one fleet is: its tiers in order of cost, thresholds, batches, bounds. One TOML file, typed."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from configs.errors import ConfigError
from configs.model import ModelSpec, load_model

PROFILES = Path(__file__).parent

#: Stops that are no tier: the collector takes verdicts, every process routes what no tier may have any more.
COLLECTOR = "collector"
ROUTE = "route"

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Probability = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Batch(Struct, frozen=True, forbid_unknown_fields=True):
    """How producers fill a batch: whichever bound is met first closes it."""

    max_items: Annotated[int, Meta(ge=1, le=4096)] = 64
    linger_ms: Annotated[float, Meta(ge=0)] = 50.0


class Admission(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of what may be in the fleet at once; a producer waits at them."""

    max_items: Positive = 200_000
    max_bytes: Positive = 2_000_000_000


class Photos(Struct, frozen=True, forbid_unknown_fields=True):
    """What intake accepts, and where the bytes wait for their verdict."""

    #: "redis", or an fsspec URL (file:///data/photos, s3://bucket/photos).
    store: str = "redis"
    #: A photo with a longer side is shrunk to this one, once, at intake.
    max_side_px: Annotated[int, Meta(ge=64)] = 960
    #: More pixels than this are a decompression bomb.
    max_pixels: Positive = 100_000_000
    max_bytes: Positive = 50_000_000
    jpeg_quality: Annotated[int, Meta(ge=50, le=100)] = 90


class Delivery(Struct, frozen=True, forbid_unknown_fields=True):
    """Beats, leases and retries of the ledger."""

    beat_s: Seconds = 1.0
    #: An owner whose beat did not move for this long, observed without a gap, is reaped.
    lease_s: Seconds = 6.0
    #: Share of claims that serve the bulk lane first although live work waits.
    bulk_share: Probability = 0.2
    #: Faults of one item, alone, until it is quarantined.
    max_faults: Positive = 3
    backoff_s: Seconds = 0.5
    #: While an engine is away its items come again without end, each time after twice as long, up to this.
    backoff_max_s: Annotated[float, Meta(gt=0, le=600)] = 60.0


class Collector(Struct, frozen=True, forbid_unknown_fields=True):
    """Where verdicts go, and how long a window waits for a missing position."""

    database: str = "sqlite:///var/verdicts.db"
    late_after_s: Seconds = 120.0
    #: Verdicts in one database transaction at most.
    max_batch: Positive = 4096
    #: After a transaction that was not full, verdicts gather for this long: each costs a flush of the disk.
    linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 10.0


class Tier(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One level of the cascade: a model, when it may settle, and the device batch it likes."""

    name: Name
    model: Name
    device: str = "cpu"
    workers: Positive = 1
    #: p at or above this settles as roadwork; at or below ``accept_below`` as none. The last tier settles always.
    accept_above: Probability = 1.0
    accept_below: Probability = 0.0
    #: Weight of this tier's vote in the pool; 0: it is recorded and changes nothing.
    weight: Annotated[float, Meta(ge=0)] = 1.0
    max_batch: Positive = 64
    #: Threads that claim and decode while the device scores; one more looks for live work while they are all busy.
    threads: Positive = 3
    #: More items than this waiting here: what would climb settles by the votes it has; 0: no mark.
    max_waiting: Annotated[int, Meta(ge=0)] = 0
    #: No progress for this long with work in hand: the process ends itself.
    stall_s: Seconds = 30.0


class Profile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fleet. ``tiers`` are in escalation order."""

    name: Name
    tiers: Annotated[tuple[Tier, ...], Meta(min_length=1)]
    batch: Batch = Batch()
    admission: Admission = Admission()
    photos: Photos = Photos()
    delivery: Delivery = Delivery()
    collector: Collector = Collector()

    def tier(self, name: str) -> Tier:
        """The tier called ``name``.

        Raises:
            ConfigError: there is none.
        """
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise ConfigError(f"profile {self.name!r} has no tier {name!r}; it has {', '.join(t.name for t in self.tiers)}")

    def after(self, name: str) -> str | None:
        """The next tier's name; None after the last, and for a tier that is not of this profile."""
        names = [tier.name for tier in self.tiers]
        place = names.index(name) + 1 if name in names else len(names)
        return names[place] if place < len(names) else None

    def models(self) -> dict[str, ModelSpec]:
        """The specification of each tier's model, by tier name."""
        return {tier.name: load_model(tier.model) for tier in self.tiers}

    def digest(self) -> str:
        """Same digest, same decisions: 16 hex digits over what decides, and over nothing else.

        That is, in their order, each tier's name, model, thresholds and weight, the version and calibrator of its
        model, and the size that photos are shrunk to. Hosts of one fleet may differ in devices, workers, threads,
        bounds, times, store and database: a second host has another GPU, or another path to the same store.
        """
        models = self.models()
        tiers = [
            (
                t.name,
                t.model,
                t.accept_above,
                t.accept_below,
                t.weight,
                models[t.name].version,
                models[t.name].calibrator,
            )
            for t in self.tiers
        ]
        return hashlib.sha256(msgspec.json.encode([tiers, self.photos.max_side_px])).hexdigest()[:16]


def _problems(profile: Profile) -> Iterator[str]:
    names = [tier.name for tier in profile.tiers]
    for name in names:
        if names.count(name) > 1:
            yield f"two tiers are called {name!r}"
        if name in (COLLECTOR, ROUTE):
            yield f"{name!r} is the name of a stop, not of a tier"
    for i, tier in enumerate(profile.tiers):
        if tier.accept_below >= tier.accept_above:
            yield (
                f"tiers[{i}] ({tier.name}): accept_below {tier.accept_below} must be under "
                f"accept_above {tier.accept_above}"
            )
        if i == 0 and tier.max_waiting:
            yield f"tiers[0] ({tier.name}): nothing climbs to the first tier, admission bounds it: no max_waiting"
        if not re.fullmatch(r"cpu|cuda:(\d+|GPU-[0-9a-fA-F-]+)", tier.device):
            yield f"tiers[{i}] ({tier.name}): device {tier.device!r} is neither cpu nor cuda:INDEX nor cuda:GPU-UUID"


def parse_profile(text: bytes, origin: str) -> Profile:
    """Reads a profile from TOML.

    Raises:
        ConfigError: not TOML, an unknown key (with its path), a wrong type or value, or a model that cannot be loaded.
    """
    try:
        profile = msgspec.toml.decode(text, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{origin}: {error}") from None
    for problem in _problems(profile):
        raise ConfigError(f"{origin}: {problem}")
    for i, tier in enumerate(profile.tiers):
        try:
            load_model(tier.model)
        except ConfigError as error:
            raise ConfigError(f"{origin}: tiers[{i}] ({tier.name}): {error}") from None
    return profile


def load_profile(name: str) -> Profile:
    """Loads a profile by name (configs/NAME.toml) or by path (anything that ends in .toml).

    Raises:
        ConfigError: as parse_profile, or there is no such file.
    """
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    try:
        text = path.read_bytes()
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.toml")))
        raise ConfigError(f"profile {name!r}: {error.strerror} ({path}); the project has {known}") from None
    return parse_profile(text, str(path))


Lane = Literal["live", "bulk"]
