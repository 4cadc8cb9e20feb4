"""What the models of a fleet take of its devices: arithmetic over profile and catalogue, before anything is loaded.

A tier's workers take, awake on a device: a CUDA context a process, the weights of its models, and room to work, which
its models use in turn. A served VLM (engine "vllm") takes the share of the device that its profile gives it, all
included. Asleep, weights are in host memory; contexts, and a server's graphs, stay on the device. Of the tiers that
sleep at most one is awake on a device at a time, so a device must hold all its residents, all its sleepers asleep, and
the largest of them awake.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from configs.errors import ConfigError
from configs.model import SERVED, ModelSpec

if TYPE_CHECKING:
    from configs.profile import Profile, Tier

#: Of a device's memory; the rest is the driver's, and what the allowances below did not foresee.
USABLE = 0.95
#: A CUDA context with its libraries' kernels and workspaces, for each process. On an H100 the driver saw 0.98 GB more
#: than torch held at its most, for the smallest model (natix-roadwork-vit).
CONTEXT_BYTES = 1_000_000_000
#: Kept on the device by a served model that sleeps: its context, 1.39 GB of an eager 4B on an H100 (docs/vlm.md). What
#: CUDA graphs add is not measured.
ASLEEP_BYTES = 1_500_000_000
#: Least room of a served model beside its weights, on each device: context, graphs, activations, and a KV cache for
#: some photos (one of 1,920 x 1,080 px is 2,040 tokens of 256 KiB in Qwen3-VL-32B: 0.5 GB).
LEAST_ROOM_BYTES = 3_000_000_000
#: Values that are alive at once in a forward pass, for each pixel of its input, of a model that was not measured.
#: Of those that were, on an H100: 40 to 250, and 1,630 of MM-Grounding-DINO.
VALUES_PER_PIXEL = 256
#: torch's allocator keeps more than its most was: 1.1 to 1.7 times, over batches of 1, 8 and 64, on an H100.
KEPT = 1.5
#: Host memory of a process, beside the weights that sleep there.
PROCESS_BYTES = 3_000_000_000
#: And of each front-end process of a server after its first: 0.7 GB were resident for a small model.
FRONT_END_BYTES = 1_000_000_000

_VALUE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """A device that a host has."""

    #: As tiers name it: cuda:INDEX or cuda:GPU-UUID.
    name: Annotated[str, Meta(pattern=r"^cuda:(\d+|GPU-[0-9a-fA-F-]+)$")]
    memory_bytes: Annotated[int, Meta(ge=1)]


class Need(Struct, frozen=True):
    """What one tier takes of one device."""

    tier: str
    #: Each as MODEL (PRECISION).
    models: tuple[str, ...]
    sleeps: bool
    weight_bytes: int
    awake_bytes: int
    #: Of the device while it sleeps.
    asleep_bytes: int
    #: Of the host: its processes, and its weights if it sleeps.
    host_bytes: int


class Load(Struct, frozen=True):
    """A device and what is asked of it."""

    device: Device
    needs: tuple[Need, ...]

    @property
    def usable_bytes(self) -> int:
        """Of the device's memory."""
        return int(USABLE * self.device.memory_bytes)

    @property
    def needed_bytes(self) -> int:
        """The most at once: residents, sleepers asleep, and the largest of these awake."""
        standing = sum(need.asleep_bytes if need.sleeps else need.awake_bytes for need in self.needs)
        return standing + max((need.awake_bytes - need.asleep_bytes for need in self.needs if need.sleeps), default=0)


def precision_of(spec: ModelSpec, tier: "Tier") -> str:
    """What a tier holds a model in: its own word, else the catalogue's; on a CPU fp32 unless asked."""
    if tier.precision != "auto":
        return tier.precision
    wanted = "fp32" if tier.device == "cpu" else spec.precision
    return "bf16" if wanted == "auto" else wanted


def weight_bytes(spec: ModelSpec, precision: str) -> int:
    """Of a model's weights: the catalogue's figure where it has one of any precision, else parameters times width.

    Raises:
        ConfigError: the catalogue has figures, but none of this precision: there is no such checkpoint.
    """
    known = spec.weight_bytes
    of = {
        "fp32": 2 * known.bf16,
        "bf16": known.bf16,
        "fp16": known.bf16,
        "fp8": known.fp8,
        "int8": known.fp8,
        "int4": known.int4,
    }
    if not any(of.values()):
        return int(spec.params * _VALUE_BYTES[precision])
    if not of[precision]:
        raise ConfigError(f"model {spec.key!r}: the catalogue knows no weights of it in {precision}")
    return of[precision]


def served(specs: Sequence[ModelSpec]) -> bool:
    """Whether a tier's model is served by a process of its own."""
    return any(spec.engine in SERVED for spec in specs)


def least_share(tier: "Tier", specs: Sequence[ModelSpec], device: Device) -> float:
    """The smallest memory_share, in hundredths, that holds a served model's weights and the least room beside them."""
    weights = sum(weight_bytes(spec, precision_of(spec, tier)) for spec in specs)
    return math.ceil(100 * (weights / tier.tensor_parallel + LEAST_ROOM_BYTES) / device.memory_bytes) / 100


def need(tier: "Tier", specs: Sequence[ModelSpec], device: Device) -> Need:
    """What a tier takes of one of its devices.

    Raises:
        ConfigError: as weight_bytes.
    """
    precisions = [precision_of(spec, tier) for spec in specs]
    sizes = [weight_bytes(spec, precision) for spec, precision in zip(specs, precisions, strict=True)]
    weights = sum(sizes) // tier.tensor_parallel
    if served(specs):
        processes = 1
        asleep = ASLEEP_BYTES
        awake = int(tier.memory_share * device.memory_bytes)
    else:
        # A model whose library cannot live beside the others runs in a process of its own, with a context of its own.
        processes = tier.workers * (1 + len({spec.environment for spec in specs if spec.environment}))
        weights *= tier.workers
        rooms = [_room_bytes(spec, p, tier.max_batch) for spec, p in zip(specs, precisions, strict=True)]
        asleep = processes * CONTEXT_BYTES
        awake = asleep + weights + tier.workers * max(rooms)
    sleeps = tier.residency == "sleep"
    # One set for the server, however many devices it is on; the first of them is the process that is counted anyway.
    front_ends, devices = tier.server.api_processes - 1, tier.tensor_parallel * tier.server.data_parallel
    return Need(
        tier=tier.name,
        models=tuple(f"{spec.key} ({precision})" for spec, precision in zip(specs, precisions, strict=True)),
        sleeps=sleeps,
        weight_bytes=weights,
        awake_bytes=awake,
        asleep_bytes=asleep,
        host_bytes=processes * PROCESS_BYTES + front_ends * FRONT_END_BYTES // devices + sleeps * weights,
    )


def _room_bytes(spec: ModelSpec, precision: str, max_batch: int) -> int:
    """What a forward pass of a full batch takes: as measured, twice that in fp32; else by the pixels of its input."""
    if not spec.params:
        return 0
    # Never less than two bytes a value, whatever the weights are in.
    width = max(2.0, _VALUE_BYTES[precision])
    photo = spec.photo_bytes * width / 2 if spec.photo_bytes else VALUES_PER_PIXEL * width * spec.input_px**2
    return int(KEPT * photo * max_batch)


def devices_of(tier: "Tier", devices: Sequence[Device]) -> Sequence[Device]:
    """Where a tier is: its device and those after it, as many as it asks for, as far as the list goes.

    A served model takes tensor_parallel devices for each of its server's data_parallel copies; a copy's share of a
    device is that of one.
    """
    names = [device.name for device in devices]
    if tier.device not in names:
        return ()
    place = names.index(tier.device)
    return devices[place : place + device_count(tier)]


def device_count(tier: "Tier") -> int:
    """Devices that a tier asks for."""
    return tier.tensor_parallel * tier.server.data_parallel


def loads(profile: "Profile", models: Mapping[str, Sequence[ModelSpec]]) -> list[Load]:
    """What is asked of each device of a profile, in their order; models by tier name.

    Raises:
        ConfigError: as weight_bytes.
    """
    return [Load(device, tuple(_needs(profile, models, device))) for device in profile.devices]


def _needs(profile: "Profile", models: Mapping[str, Sequence[ModelSpec]], device: Device) -> Iterator[Need]:
    for tier in profile.tiers:
        if device in devices_of(tier, profile.devices):
            yield need(tier, models[tier.name], device)


def host_bytes(found: Sequence[Load]) -> int:
    """Of host memory, for everything on the devices."""
    return sum(one.host_bytes for load in found for one in load.needs)


def shown(of_bytes: float) -> str:
    """Bytes for people."""
    return f"{of_bytes / 1e9:.1f} GB"
