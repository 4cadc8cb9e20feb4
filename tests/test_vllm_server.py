"""The command of a VLM's server: what a tier and its row come to, and what is refused before anything starts."""

import json
import shlex
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from configs.errors import ConfigError
from configs.model import catalogue, load_model
from configs.profile import Profile, load_profile, parse_profile
from configs.serving import Server
from ops.cli import cli
from ops.vllm_releases import RELEASES, installed_release, require
from ops.vllm_server import PYTHON_VARIABLE, ServerCommand, catalogue_commands, server_command, vllm_python

CARDS = "".join(f'[[devices]]\nname = "cuda:{i}"\nmemory_bytes = 80_000_000_000\n' for i in range(4))
TIER = '[[tiers]]\nname = "{name}"\nmodel = "qwen3-vl-32b-instruct"\ndevice = "{device}"\nmemory_share = 0.9\n'


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No checkpoint on this machine, whatever its cache holds."""
    monkeypatch.delenv("NATIX_FLEET_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def profile(more: str = "", server: str = "", device: str = "cuda:0") -> Profile:
    """Of two served tiers, the second with more."""
    text = f'name = "p"\n{CARDS}{TIER.format(name="a", device="cuda:3")}{TIER.format(name="b", device=device)}{more}\n'
    return parse_profile((text + (f"[tiers.server]\n{server}\n" if server else "")).encode(), "x.toml")


def command(more: str = "", server: str = "", release: str = "0.32.0") -> ServerCommand:
    one = profile(more, server)
    return server_command(one, one.tier("b"), release, "python")


def value(one: ServerCommand, flag: str) -> str:
    assert one.argv.count(flag) == 1
    return one.argv[one.argv.index(flag) + 1]


def test_a_tier_as_a_command() -> None:
    """The published checkpoint of its precision, its own port and card, one photo a question, nothing reported."""
    one = command()
    assert one.argv[:5] == ("python", "-m", "vllm.entrypoints.cli.main", "serve", "Qwen/Qwen3-VL-32B-Instruct-FP8")
    assert (one.key, one.url, one.health_url) == (
        "qwen3-vl-32b-instruct",
        "http://127.0.0.1:8101",
        "http://127.0.0.1:8101/health",
    )
    assert (value(one, "--host"), value(one, "--port")) == ("127.0.0.1", "8101")
    assert (value(one, "--served-model-name"), value(one, "--revision")) == (one.key, "main")
    assert value(one, "--gpu-memory-utilization") == "0.9"
    assert json.loads(value(one, "--limit-mm-per-prompt")) == {"image": 1, "video": 0}
    assert json.loads(value(one, "--mm-processor-kwargs")) == {
        "size": {"shortest_edge": 65_536, "longest_edge": 1_048_576}
    }
    assert (value(one, "--logprobs-mode"), value(one, "--generation-config")) == ("processed_logprobs", "vllm")
    assert one.env["CUDA_VISIBLE_DEVICES"] == "0"
    assert one.env["VLLM_NO_USAGE_STATS"] == "1"
    assert "HF_HUB_OFFLINE" not in one.env
    for absent in ("--quantization", "--mm-encoder-tp-mode", "--enable-sleep-mode", "--kv-transfer-config", "--dtype"):
        assert absent not in one.argv
    assert "VLLM_SERVER_DEV_MODE" not in one.env


@pytest.mark.parametrize(
    ("more", "server", "flags", "env"),
    [
        ("tensor_parallel = 2", "", {"--tensor-parallel-size": "2", "--mm-encoder-tp-mode": "data"}, "0,1"),
        ("", "data_parallel = 3", {"--data-parallel-size": "3", "--tensor-parallel-size": "1"}, "0,1,2"),
        ("", "data_parallel = 2", {"--distributed-executor-backend": "uni"}, "0,1"),
        ("", "api_processes = 8\nmax_num_seqs = 256", {"--api-server-count": "8", "--max-num-seqs": "256"}, "0"),
        ("", 'kv_cache_dtype = "fp8"\nblock_size = 32', {"--kv-cache-dtype": "fp8", "--block-size": "32"}, "0"),
        ("", "port = 9001\nmax_num_batched_tokens = 32768", {"--max-num-batched-tokens": "32768"}, "0"),
        ('precision = "bf16"\ntensor_parallel = 2', "", {"--dtype": "bfloat16"}, "0,1"),
    ],
)
def test_what_a_tier_decides(more: str, server: str, flags: dict[str, str], env: str) -> None:
    """Each key of a tier and of its server is a flag, and its copies and parts have a card each."""
    one = command(more, server)
    for flag, wanted in flags.items():
        assert value(one, flag) == wanted
    assert one.env["CUDA_VISIBLE_DEVICES"] == env
    if "port" in server:
        assert one.url.endswith(":9001")


def test_switches() -> None:
    """What is on by default can be switched off, and the other way round."""
    assert "--enable-prefix-caching" in command().argv
    assert "--no-enable-prefix-caching" in command(server="prefix_caching = false").argv
    assert "--enforce-eager" in command(server="eager = true").argv


def test_copies_of_one_device_each_have_no_process_more() -> None:
    """A copy that is split must have one for each part; a server without copies has none anyway; so on a processor."""
    one, copies = profile(), Server(data_parallel=2)
    split = replace(one.tier("b"), tensor_parallel=2, server=copies)
    on_a_processor = replace(one.tier("b"), device="cpu", precision="bf16", memory_share=0.0, server=copies)
    for tier in (one.tier("b"), split, on_a_processor):
        assert "--distributed-executor-backend" not in server_command(one, tier).argv


def test_who_must_be_told_to_keep_to_one_core() -> None:
    """The older release, on a GPU: on a processor all of them are what it has."""
    assert command(release="0.22.1").env["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in command(release="0.32.0").env
    own = load_profile("vlm-cpu")
    assert "OMP_NUM_THREADS" not in server_command(own, own.tier("mini-vlm"), "0.22.1").env


def test_only_who_sleeps_has_the_endpoints_for_it() -> None:
    """They let anybody who reaches the port look into a server: it is on loopback, as all are."""
    one = command('residency = "sleep"')
    assert "--enable-sleep-mode" in one.argv
    assert one.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert value(one, "--host") == "127.0.0.1"


def test_a_cache_beyond_the_server() -> None:
    """LMCache's connector as JSON, and its environment."""
    one = command(server="lmcache = true\nblock_size = 16")
    told = json.loads(value(one, "--kv-transfer-config"))
    assert (told["kv_connector"], told["kv_role"]) == ("LMCacheMPConnector", "kv_both")
    assert one.env["PYTHONHASHSEED"] == "0"


def test_thoughts_and_heads() -> None:
    """A parser for who thinks; a draft for who thinks and has a head; who could think and must not is told so."""
    found = catalogue_commands()
    for key, one in found.items():
        serving = load_model(key).serving
        assert serving
        assert ("--reasoning-parser" in one.argv) == (serving.thinking_tokens > 0) == key.endswith(("thinking", "-27b"))
        assert ("--speculative-config" in one.argv) == key.endswith("-27b")
    assert json.loads(value(found["qwen3.6-27b"], "--speculative-config")) == {
        "method": "mtp",
        "num_speculative_tokens": 2,
    }
    assert json.loads(value(found["qwen3.6-35b-a3b"], "--default-chat-template-kwargs")) == {"enable_thinking": False}
    # No more than its row says is quantised at a start: the others' checkpoints say it themselves.
    assert [key for key, one in found.items() if "--quantization" in one.argv] == ["internvl3.5-38b"]


@pytest.mark.parametrize("release", RELEASES)
def test_every_vlm_of_the_catalogue_has_a_command(release: str) -> None:
    """On ports of their own."""
    found = catalogue_commands(release)
    assert set(found) == {key for key, spec in catalogue().items() if spec.engine == "vllm"}
    assert len({one.url for one in found.values()}) == len(found)


def test_weights_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder instead of the hub, which is then never asked; what is in few bits there needs no flag."""
    folder = tmp_path / "qwen3-vl-32b-instruct"
    folder.mkdir()
    monkeypatch.setenv("NATIX_FLEET_WEIGHTS", str(tmp_path))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"qwen3-vl-32b-instruct' in fp8: .* is not, .*natix-fleet quantize"):
        command()
    (folder / "config.json").write_text('{"quantization_config": {}}')
    one = command()
    assert one.argv[4] == str(folder)
    assert one.env["HF_HUB_OFFLINE"] == "1"
    assert "--revision" not in one.argv
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        command()


def test_what_a_release_lacks_is_refused() -> None:
    """Before a server is started that would end with a page of usage."""
    server = 'kv_cache_dtype = "int4_per_token_head"'
    assert "int4_per_token_head" in command(server=server).argv
    with pytest.raises(ConfigError, match=r"vLLM 0\.22\.1 does not know --kv-cache-dtype int4_per_token_head"):
        command(server=server, release="0.22.1")
    with pytest.raises(ConfigError, match=r"vLLM 0\.22\.1 does not know this model, 0\.30\.0 is the first that does"):
        require("0.22.1", ["serve"], "0.30.0")
    for since in ("0.8.3", "0.22.1"):
        require("0.22.1", ["serve"], since)
    with pytest.raises(ConfigError, match=r"vLLM 0\.1\.0 is not known here: 0\.32\.0, 0\.22\.1 are"):
        command(release="0.1.0")


def test_who_has_no_server() -> None:
    """A tier of the fleet's own engines, and one whose server is somebody else's."""
    demo = load_profile("demo")
    with pytest.raises(ConfigError, match="'scout-s' has no server of its own: scout-s"):
        server_command(demo, demo.tiers[0])
    text = (
        'name = "p"\n[[tiers]]\nname = "v"\nmodel = "qwen3-vl-32b-instruct"\n[tiers.server]\nurl = "http://gpu:8000"\n'
    )
    one = parse_profile(text.encode(), "x.toml")
    assert one.server_url(one.tiers[0]) == "http://gpu:8000"
    with pytest.raises(ConfigError, match="http://gpu:8000, which the fleet does not start"):
        server_command(one, one.tiers[0])


def test_the_interpreter(tmp_path: Path) -> None:
    """The one that is named; else this one, if it has vLLM; its release is asked of it."""
    assert vllm_python({PYTHON_VARIABLE: "/somewhere/python"}) == "/somewhere/python"
    with pytest.raises(ConfigError, match=rf"vllm\.txt.*set {PYTHON_VARIABLE}"):
        vllm_python({})
    with pytest.raises(ConfigError, match="has no vLLM"):
        installed_release(sys.executable)
    stranger = tmp_path / "python"
    stranger.write_text("#!/bin/sh\necho 9.9.9\n")
    stranger.chmod(0o755)
    with pytest.raises(ConfigError, match=r"has vLLM 9\.9\.9; the fleet knows 0\.32\.0, 0\.22\.1"):
        installed_release(str(stranger))


def test_the_commands_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """For people a line that a shell takes, the environment first; for machines {key: argv}."""
    monkeypatch.setenv(PYTHON_VARIABLE, "/opt/v llm/python")
    shown = CliRunner().invoke(cli, ["vllm", "commands", "--profile", "h100x2"], catch_exceptions=False)
    lines = [shlex.split(line) for line in shown.stdout.splitlines()]
    told = CliRunner().invoke(cli, ["vllm", "commands", "--profile", "h100x2", "--json"], catch_exceptions=False)
    argvs = msgspec.json.decode(told.stdout, type=dict[str, list[str]])
    assert len(lines) == len(argvs) == 5
    for line, argv in zip(lines, argvs.values(), strict=True):
        assert line[0] == "env"
        assert line[-len(argv) :] == argv
        assert argv[0] == "/opt/v llm/python"
        assert all("=" in word for word in line[1 : -len(argv)])
    wrong = CliRunner().invoke(cli, ["vllm", "commands", "--release", "0.1.0"])
    assert wrong.exit_code != 0
