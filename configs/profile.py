"""A profile says what one fleet is: its tiers in order of cost, thresholds, batches, bounds. One TOML file, typed."""

import hashlib
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from configs import consistency, fit
from configs.errors import ConfigError
from configs.memory import Device
from configs.model import CATALOGUE, Key, ModelSpec, Precision, load_model
from configs.prompt import load_prompt, questions
from configs.serving import FIRST_PORT, Server

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


class Voter(Struct, frozen=True, forbid_unknown_fields=True):
    """A model at work in a tier, and what its vote weighs."""

    model: Key
    #: Weight of its vote in the pool; 0: it is recorded, counts for agreement, and moves nothing.
    weight: Annotated[float, Meta(ge=0)] = 1.0


class Tier(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stop of the cascade: one model or a panel of them, when it may settle, and the device batch it likes."""

    name: Name
    #: The model; or else ``panel``: several models on one device, each of which looks at every photo and votes.
    model: str = ""
    panel: tuple[Voter, ...] = ()
    device: str = "cpu"
    #: What the models are held in; "auto": each in its own of the catalogue.
    precision: Precision = "auto"
    #: Through torch.compile, where an engine can: a slower start, a faster device.
    compile: bool = False
    #: "sleep": its weights wait in host memory until work comes, and others have the device meanwhile.
    residency: Literal["resident", "sleep"] = "resident"
    #: Of a served model: the share of the device's memory that its server takes, all included (configs.memory).
    memory_share: Probability = 0.0
    #: Of a served model: it is split over so many devices, its own and those after it in the profile's list.
    tensor_parallel: Positive = 1
    #: Of a served model: its server, and how it is asked.
    server: Server = Server()
    #: Its server does not answer: "abstain", its items go on with the votes that they have; "wait", they come again.
    away: Literal["abstain", "wait"] = "abstain"
    #: [low, high): it takes only items of this certainty, c = |2 p - 1| of the pool. Tiers with a band that stand side
    #: by side are alternatives: an item goes to one of them, and from there past them all; one more certain than all
    #: of them settles.
    band: tuple[Probability, Probability] | None = None
    #: Share of this tier's votes that must stand on one side of 0.5 before it may settle; 0: no such rule.
    agree: Probability = 0.0
    workers: Positive = 1
    #: p at or above this settles as roadwork; at or below ``accept_below`` as none. The last tier settles always.
    accept_above: Probability = 1.0
    accept_below: Probability = 0.0
    #: Weight of the vote of ``model``; a panel says it of each.
    weight: Annotated[float, Meta(ge=0)] = 1.0
    max_batch: Positive = 64
    #: Threads that claim and decode while the device scores; one more looks for live work while they are all busy.
    threads: Positive = 3
    #: More items than this waiting here: what would climb settles by the votes it has; 0: no mark.
    max_waiting: Annotated[int, Meta(ge=0)] = 0
    #: No progress for this long with work in hand: the process ends itself.
    stall_s: Seconds = 30.0

    @property
    def voters(self) -> tuple[Voter, ...]:
        """Who votes here, in order."""
        return self.panel or (Voter(self.model, self.weight),)


class Stack(Struct, frozen=True, forbid_unknown_fields=True):
    """Consensus fitted on labelled votes: log-odds = intercept + a term for each model (routing.consensus.stack)."""

    intercept: float
    #: By model key: what one unit of log-odds of its vote adds.
    slopes: dict[Key, float]
    #: By model key: what is added when it has no vote.
    missing: dict[Key, float] = {}
    #: Verdicts that it was fitted on, in words.
    fitted_on: str = ""


class Profile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One fleet. ``tiers`` are in escalation order."""

    name: Name
    tiers: Annotated[tuple[Tier, ...], Meta(min_length=1)]
    #: What the host has; with this list a profile that does not fit is refused. 0: the host's own memory is not said.
    devices: tuple[Device, ...] = ()
    host_memory_bytes: Annotated[int, Meta(ge=0)] = 0
    batch: Batch = Batch()
    admission: Admission = Admission()
    photos: Photos = Photos()
    delivery: Delivery = Delivery()
    collector: Collector = Collector()
    #: How votes become one probability where labels were there to fit it; without it they are pooled.
    consensus: Stack | None = None

    def tier(self, name: str) -> Tier:
        """The tier called ``name``.

        Raises:
            ConfigError: there is none.
        """
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise ConfigError(f"profile {self.name!r} has no tier {name!r}; it has {', '.join(t.name for t in self.tiers)}")

    def after(self, name: str) -> tuple[Tier, ...]:
        """Where an item may climb to from a tier: one tier, or a run of alternatives, each with its band.

        Empty after the last, and for a tier that is not of this profile.
        """
        names = [tier.name for tier in self.tiers]
        if name not in names:
            return ()
        place = names.index(name)
        rest = list(self.tiers[place + 1 :])
        if self.tiers[place].band:
            # Past the other alternatives.
            rest = list(dropwhile(lambda tier: tier.band, rest))
        return tuple(takewhile(lambda tier: tier.band, rest)) or tuple(rest[:1])

    def models(self) -> dict[str, tuple[ModelSpec, ...]]:
        """The models of each tier in the order of its voters, by tier name."""
        return {tier.name: tuple(load_model(voter.model) for voter in tier.voters) for tier in self.tiers}

    def server_url(self, tier: Tier) -> str:
        """Where the server of a served tier is: somebody else's, or on loopback, each tier on a port of its own."""
        served = [t.name for t in self.tiers if any(load_model(v.model).serving for v in t.voters)]
        port = tier.server.port or FIRST_PORT + served.index(tier.name)
        return tier.server.url.rstrip("/") or f"http://127.0.0.1:{port}"

    def digest(self) -> str:
        """Same digest, same decisions: 16 hex digits over what decides, and over nothing else.

        That is, in their order, each tier's name, thresholds, band and rule of agreement, the version, calibrator and
        weight of each of its models, how votes become one probability, and the size that photos are shrunk to; of a
        served model also what it is asked, how large the photo is then, how long it may think, which of its answers are
        votes, and what is done without its server; of one under a press its options and questions. Hosts
        of one fleet may differ in devices, precision, workers, threads, bounds, times, store and database: a second
        host has another GPU, or another path to the same store.
        """
        models = self.models()
        tiers = [
            (
                t.name,
                t.accept_above,
                t.accept_below,
                t.band,
                t.agree,
                [(m.name, m.calibrator, v.weight) for m, v in zip(models[t.name], t.voters, strict=True)],
            )
            for t in self.tiers
        ]
        decides: list[object] = [tiers, self.consensus, self.photos.max_side_px]
        #: What served models are asked, and which of their answers are votes.
        asked = [
            (
                t.name,
                load_prompt(m.serving.prompt),
                m.serving.thinking_tokens,
                t.server.max_outside,
                t.server.sent_px,
                m.serving.pixels,
                sorted(m.serving.processor.items()),
                sorted(m.serving.chat_template.items()),
                t.away,
            )
            for t in self.tiers
            for m in models[t.name]
            if m.serving
        ]
        #: And what a model is asked that runs in the worker under a press (workers.engines.kvpress).
        pressed = [
            (t.name, sorted(m.options.items()), questions(m.options), t.server.max_outside)
            for t in self.tiers
            for m in models[t.name]
            if m.engine == "kvpress"
        ]
        decides += [one for one in (asked, pressed) if one]
        return hashlib.sha256(msgspec.json.encode(decides)).hexdigest()[:16]


def parse_profile(text: bytes, origin: str) -> Profile:
    """Reads a profile from TOML.

    Raises:
        ConfigError: not TOML, an unknown key (with its path), a wrong type or value, a model that cannot be loaded, or
            more of them than the devices hold.
    """
    try:
        profile = msgspec.toml.decode(text, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{origin}: {error}") from None
    for problem in consistency.problems(profile, (COLLECTOR, ROUTE)):
        raise ConfigError(f"{origin}: {problem}")
    for i, tier in enumerate(profile.tiers):
        try:
            for voter in tier.voters:
                load_model(voter.model)
        except ConfigError as error:
            raise ConfigError(f"{origin}: tiers[{i}] ({tier.name}): {error}") from None
    models = profile.models()
    for problem in (*consistency.server_problems(profile, models), *fit.problems(profile, models)):
        raise ConfigError(f"{origin}: {problem}")
    return profile


def profiles() -> list[str]:
    """Names of the project's profiles: every configs/NAME.toml but the catalogue."""
    return sorted(path.stem for path in PROFILES.glob("*.toml") if path != CATALOGUE)


def load_profile(name: str) -> Profile:
    """Loads a profile by name (configs/NAME.toml) or by path (anything that ends in .toml).

    Raises:
        ConfigError: as parse_profile, or there is no such file.
    """
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    try:
        text = path.read_bytes()
    except OSError as error:
        known = ", ".join(profiles())
        raise ConfigError(f"profile {name!r}: {error.strerror} ({path}); the project has {known}") from None
    return parse_profile(text, str(path))


Lane = Literal["live", "bulk"]
