"""Every command that the fleet starts a VLM's server with, read by the real vLLM: its parser, its configuration.

The release of NATIX_FLEET_PYTHON_VLLM always; 0.22.1 too where NATIX_FLEET_PYTHON_VLLM_0221 names an interpreter that
has it. Checkpoints are configurations of the real kind and shape without weights (tests/vllm/shape_configs.py).
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.memory import served
from configs.model import catalogue, load_model
from configs.profile import Profile, Tier, load_profile
from configs.serving import Server, Serving
from ops.lmcache import kv_transfer_config
from ops.vllm_releases import GPU_ONLY, RELEASES, installed_release
from ops.vllm_server import ServerCommand, catalogue_commands, server_command
from tests.vllm.conftest import NAME

HERE = Path(__file__).parent
OLDER = "NATIX_FLEET_PYTHON_VLLM_0221"
PYTHONS = [os.environ[name] for name in ("NATIX_FLEET_PYTHON_VLLM", OLDER) if name in os.environ]
PROFILES = ("gpu1", "h100x2", "h100x2-all")

#: Commands beside those of rows and profiles, by name: what is asked of a server of the conftest's model.
ASKED = {
    "lmcache": Server(lmcache=True, block_size=32),
    "copies": Server(data_parallel=2, api_processes=8),
    "plain": Server(prefix_caching=False, eager=True, max_num_seqs=16, mm_processor_cache_gb=2.0),
    "fp8 cache": Server(kv_cache_dtype="fp8"),
}


class Readings:
    """What one release made of all commands."""

    def __init__(self, python: str, folder: Path) -> None:
        self.release = installed_release(python)
        self.told = _read(python, dict(_commands(folder / "weights", self.release, python)), folder)

    def built(self, name: str) -> dict[str, Any]:
        """What its engine would be built from."""
        told = self.told[name]
        assert told["stage"] == "built", f"vLLM {self.release}, {name}: {told}"
        return told


@pytest.fixture(scope="module", params=PYTHONS)
def readings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Readings:
    """Of each release that is here."""
    return Readings(request.param, tmp_path_factory.mktemp("commands"))


def test_every_row_is_served(readings: Readings) -> None:
    """vLLM understands of each row's command what the row says, and a photo is no larger than it says."""
    rows = [key for key, spec in catalogue().items() if spec.engine == "vllm" and not spec.folder.is_dir()]
    assert len(rows) > 15
    for key in rows:
        serving = load_model(key).serving
        assert serving
        _agrees(serving, Server(), readings.built(key))


@pytest.mark.parametrize("name", PROFILES)
def test_every_tier_is_served(readings: Readings, name: str) -> None:
    """What a profile says of its servers is what they would be; what only a GPU accepts is left out."""
    profile = load_profile(name)
    models = profile.models()
    for tier in profile.tiers:
        if served(models[tier.name]):
            serving = models[tier.name][0].serving
            assert serving
            built = readings.built(f"{name}/{tier.name}")
            _agrees(serving, tier.server, built)
            assert built["tensor_parallel"] == tier.tensor_parallel
            assert built["memory_share"] == tier.memory_share
            wanted = "data" if tier.tensor_parallel > 1 and serving.encoder_data_parallel else "weights"
            assert built["encoder"] == wanted


def test_sub_configurations(readings: Readings) -> None:
    """Speculative decoding, LMCache, copies, caches: each is built, and says what was asked."""
    for name, server in ASKED.items():
        _agrees(_serving(), server, readings.built(name))
    assert (readings.built("copies")["executor"], readings.built("plain")["executor"]) == ("uni", None)
    told = kv_transfer_config()
    connector = [told["kv_connector"], told["kv_role"], told["kv_connector_extra_config"]]
    assert readings.built("lmcache")["connector"] == connector
    assert readings.built("qwen3.6-27b")["draft"] == ["mtp", 2]
    assert readings.built("ngram")["draft"] == ["ngram", 3]


def test_what_only_a_gpu_accepts(readings: Readings) -> None:
    """Each by its own words, and for no other reason; whoever runs on a processor after all leaves the list."""
    for one in GPU_ONLY:
        told = readings.told[f"gpu: {one.flag}"]
        assert told["stage"] == "engine"
        assert one.words in told["refused"]
    refused = {name for name, told in readings.told.items() if told["stage"] != "built"}
    assert {name for name in refused if not name.startswith("wrong: ")} == {f"gpu: {one.flag}" for one in GPU_ONLY}


def test_what_a_release_lacks(readings: Readings) -> None:
    """Its parser refuses each flag and each value of the table, and knows those that only others lack."""
    mine = RELEASES[readings.release]
    for name, lacks in RELEASES.items():
        for flag in lacks.flags:
            told = readings.told[f"wrong: {flag}"]
            if flag in mine.flags:
                assert told["stage"] == "parser", f"vLLM {readings.release} has {flag}, its table says that it has not"
                assert f"unrecognized arguments: {flag}" in told["refused"]
            else:
                assert "unrecognized" not in told.get("refused", ""), f"{flag} is lacked by {name} only"
        for flag, values in lacks.values.items():
            for value in values:
                told = readings.told[f"wrong: {flag} {value}"]
                assert ("invalid choice" in told.get("refused", "")) == (value in mine.values[flag])


def test_wrong_json_is_seen(readings: Readings) -> None:
    """A mistyped key is refused by vLLM, or else what it built is not what the row says."""
    for name in ("wrong: transfer", "wrong: draft"):
        assert readings.told[name]["stage"] != "built", f"{name}: vLLM took it"
    # These two vLLM may take: it looks no closer at the names of modalities, nor, in 0.32.0, at those of bounds.
    for name in ("wrong: limit", "wrong: bound"):
        with pytest.raises(AssertionError):
            _agrees(_serving(), Server(), readings.built(name))


def test_fields_of_a_question(readings: Readings) -> None:
    """Those that a release ignores are not of its API, and those that others lack are."""
    fields = set(readings.told["fields"]["fields"])
    for release in RELEASES.values():
        for field in release.fields:
            assert (field in fields) == (field not in RELEASES[readings.release].fields)


def _serving() -> Serving:
    serving = load_model(NAME).serving
    assert serving
    return serving


def _agrees(serving: Serving, server: Server, built: Mapping[str, Any]) -> None:
    """Whether what vLLM built is what was meant."""
    assert built["logprobs_mode"] == "processed_logprobs"
    assert built["max_logprobs"] == 20
    assert built["limits"]["image"] == 1
    assert {built["limits"][modality] for modality in serving.unused} <= {0}
    assert built["max_model_len"] == serving.max_model_len
    assert built["batched_tokens"] == (server.max_num_batched_tokens or serving.max_num_batched_tokens)
    assert built["sequences"] == server.max_num_seqs
    assert built["api_processes"] == server.api_processes
    assert built["data_parallel"] == server.data_parallel
    assert built["prefix_caching"] == server.prefix_caching
    assert built["kv_cache_dtype"] == server.kv_cache_dtype
    assert built["reasoning"] == serving.reasoning_parser
    assert built["chat_template"] == (serving.chat_template or None)
    least, most = serving.pixels
    if most:
        assert built["processor"] == {"size": {"shortest_edge": least, "longest_edge": most}}
        # Qwen merges patches of 14 or 16 px by 2 x 2.
        assert most // 32**2 <= built["photo_tokens"] <= most // 28**2
    else:
        assert built["processor"] == (serving.processor or None)


def _commands(weights: Path, release: str, python: str) -> Iterator[tuple[str, list[str]]]:
    """What stands behind ``serve``, by the command's name; ``weights`` are written."""
    specs = [spec for spec in catalogue().values() if spec.engine == "vllm" and not spec.folder.is_dir()]
    pairs = [f"{spec.key}={spec.precision}" for spec in specs]
    subprocess.run([python, str(HERE / "shape_configs.py"), str(weights), *pairs], check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATIX_FLEET_WEIGHTS", str(weights))
        for key, command in catalogue_commands(release, python).items():
            if (weights / key).is_dir():
                yield key, _served(command)
        for name in PROFILES:
            profile = load_profile(name)
            models = profile.models()
            for tier in profile.tiers:
                if served(models[tier.name]):
                    whole = _served(server_command(profile, tier, release, python))
                    yield f"{name}/{tier.name}", [word for word in whole if word not in {one.flag for one in GPU_ONLY}]
        devices = load_profile("h100x2").devices
        for name, server in ASKED.items():
            tier = Tier(name="v", model=NAME, device=devices[0].name, memory_share=0.5, server=server)
            yield (
                name,
                _served(server_command(Profile(name="p", tiers=(tier,), devices=devices), tier, release, python)),
            )
        row = _served(catalogue_commands(release, python)[NAME])
    yield "ngram", [*row, "--speculative-config", '{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":4}']
    for one in GPU_ONLY:
        yield f"gpu: {one.flag}", [*row, one.flag]
    yield from _wrong(row)


def _wrong(row: list[str]) -> Iterator[tuple[str, list[str]]]:
    """What a release lacks, and JSON with a mistyped key."""
    switches = ("--sleep-mode-offload-cudagraph", "--calculate-kv-scales", "--use-v2-block-manager")
    for flag in sorted({flag for release in RELEASES.values() for flag in release.flags}):
        yield f"wrong: {flag}", [*row, flag, *(() if flag in switches else ("1",))]
    for release in RELEASES.values():
        for flag, values in release.values.items():
            for one in sorted(values):
                yield f"wrong: {flag} {one}", [*row, flag, one]
    transfer = json.dumps(kv_transfer_config()).replace("kv_connector_extra", "kv_conector_extra")
    yield "wrong: transfer", [*row, "--kv-transfer-config", transfer]
    yield "wrong: draft", [*row, "--speculative-config", '{"method":"ngram","num_speculative_token":3}']
    yield "wrong: limit", _with(row, "--limit-mm-per-prompt", '{"imagee":1,"video":0}')
    bound = '{"size":{"shortest_edge":65536,"longestedge":1048576}}'
    yield "wrong: bound", _with(row, "--mm-processor-kwargs", bound)


def _with(argv: list[str], flag: str, value: str) -> list[str]:
    place = argv.index(flag)
    return [*argv[: place + 1], value, *argv[place + 2 :]]


def _served(command: ServerCommand) -> list[str]:
    return list(command.argv[command.argv.index("serve") + 1 :])


def _read(python: str, commands: Mapping[str, list[str]], folder: Path) -> dict[str, dict[str, Any]]:
    """What the release of an interpreter makes of them: one process for all."""
    out = folder / "told.json"
    done = subprocess.run(
        [python, str(HERE / "read_commands.py"), str(out)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, dict[str, Any]] = json.loads(out.read_text())
    return told
