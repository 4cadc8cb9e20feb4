"""What fits where: the arithmetic, the profiles that are shipped, and what is said of one that does not fit."""

from pathlib import Path

import msgspec
import pytest

from configs.errors import ConfigError
from configs.memory import (
    ASLEEP_BYTES,
    CONTEXT_BYTES,
    KEPT,
    LEAST_ROOM_BYTES,
    PROCESS_BYTES,
    USABLE,
    VALUES_PER_PIXEL,
    Device,
    host_bytes,
    loads,
    shown,
    weight_bytes,
)
from configs.model import catalogue, load_model
from configs.profile import PROFILES, Profile, load_profile, parse_profile
from ops.plan import Plan, devices, make_plan, missing, uncounted
from tests.test_cli import FLEET, refuses, run
from workers.gpus import read_gpus

SHIPPED = ("h100x2", "h100x2-all", "gpu1")

#: Rows of the request that no profile names: they are code.
CODE = {"consensus", "object-size"}

HEAD = """
name = "p"
host_memory_bytes = 200_000_000_000
[[devices]]
name = "cuda:0"
memory_bytes = 80_000_000_000
[[devices]]
name = "cuda:1"
memory_bytes = 80_000_000_000
[[tiers]]
name = "first"
model = "natix-roadwork-vit"
device = "cuda:0"
max_batch = 8
"""

VLM = """
[[tiers]]
name = "NAME"
model = "qwen3-vl-32b-instruct"
precision = "PRECISION"
device = "cuda:0"
memory_share = SHARE
"""


def vlm(name: str, precision: str, share: float, more: str = "") -> str:
    return VLM.replace("NAME", name).replace("PRECISION", precision).replace("SHARE", str(share)) + more


def parsed(text: str) -> Profile:
    return parse_profile(text.encode(), "x.toml")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_fit(name: str) -> None:
    """Each device holds what is awake there at once, and the host what sleeps."""
    plan = make_plan(load_profile(name))
    assert plan.devices
    for device in plan.devices:
        assert 0 < device.needed_bytes <= device.usable_bytes < device.memory_bytes
    assert 0 < plan.host_needed_bytes <= plan.host_memory_bytes
    assert plan.elsewhere == ()


def test_every_model_that_was_asked_for_is_in_the_large_profile() -> None:
    """By its own row, or by the row that stands in for it; consensus and object-size are code; one asks a sleeper."""
    there = {spec.key for specs in load_profile("h100x2-all").models().values() for spec in specs}
    asked = [spec for spec in catalogue().values() if spec.requested]
    assert len(asked) == 33
    for spec in asked:
        assert (spec.replaced_by or spec.key) in there | CODE | {"sam3-agent"}, spec.key
    for key in CODE:
        assert not catalogue()[key].engine


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_never_pools_a_vote_of_unknown_worth(name: str) -> None:
    """Detectors without a fitted calibrator have no weight until somebody fits one."""
    for tier in load_profile(name).tiers:
        for voter in tier.panel:
            assert voter.weight == 0 or load_model(voter.model).calibrator.fitted_on


def test_an_engines_need_is_context_weights_and_the_largest_room() -> None:
    """Models of a panel share a context and use one room in turn; one of another environment has its own context."""
    text = HEAD.replace(
        'model = "natix-roadwork-vit"',
        'panel = [{ model = "sam3" }, { model = "dfine-x" }, { model = "yolo-master-n" }]\nworkers = 2',
    )
    profile = parsed(text)
    (need,) = loads(profile, profile.models())[0].needs
    weights = sum(weight_bytes(load_model(key), "bf16") for key in ("sam3", "dfine-x", "yolo-master-n"))
    room = int(KEPT * 8 * load_model("sam3").photo_bytes)
    assert need.weight_bytes == 2 * weights
    assert need.awake_bytes == 2 * (2 * CONTEXT_BYTES + weights + room)
    assert need.host_bytes == 4 * PROCESS_BYTES


def test_a_model_that_was_not_measured_is_counted_by_its_pixels() -> None:
    """Its room is an assumption, stated as values a pixel; twice that in fp32, where every value is twice as wide."""
    profile = parsed(HEAD.replace('model = "natix-roadwork-vit"', 'model = "florence-2-large"\nprecision = "fp32"'))
    spec = load_model("florence-2-large")
    assert spec.photo_bytes == 0
    (need,) = loads(profile, profile.models())[0].needs
    room = int(KEPT * VALUES_PER_PIXEL * 4 * spec.input_px**2 * 8)
    assert need.awake_bytes == CONTEXT_BYTES + 2 * spec.weight_bytes.bf16 + room


def test_of_those_that_sleep_the_largest_is_awake() -> None:
    """Residents, every sleeper's rest on the device, and one of them in full; their weights are in host memory."""
    text = HEAD + vlm("a", "fp8", 0.6, 'residency = "sleep"\n') + vlm("b", "fp8", 0.7, 'residency = "sleep"\n')
    profile = parsed(text)
    load = loads(profile, profile.models())[0]
    first, a, b = load.needs
    assert (a.awake_bytes, b.awake_bytes) == (48_000_000_000, 56_000_000_000)
    assert load.needed_bytes == first.awake_bytes + ASLEEP_BYTES + 56_000_000_000
    weights = weight_bytes(load_model("qwen3-vl-32b-instruct"), "fp8")
    assert a.host_bytes == b.host_bytes == PROCESS_BYTES + weights
    assert host_bytes([load]) == 3 * PROCESS_BYTES + 2 * weights


def test_a_model_split_over_two_devices_takes_half_of_each() -> None:
    """Its share holds on both; in bf16 a 32B leaves the first card room for others only so."""
    profile = parsed(HEAD + vlm("a", "bf16", 0.5, "tensor_parallel = 2\n"))
    first, second = loads(profile, profile.models())
    assert [need.tier for need in second.needs] == ["a"]
    assert first.needs[1].weight_bytes == second.needs[0].weight_bytes == 33_357_000_000


@pytest.mark.parametrize(
    ("precision", "gigabytes"), [("fp32", 133.4), ("bf16", 66.7), ("fp16", 66.7), ("fp8", 35.5), ("int4", 20.9)]
)
def test_weights_by_precision(precision: str, gigabytes: float) -> None:
    """As the catalogue says; fp32 is twice bf16."""
    found = weight_bytes(load_model("qwen3-vl-32b-instruct"), precision)
    assert found / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_one_more_32b_in_bf16_is_refused() -> None:
    """Both figures are in the line; here no other change of one tier would do, so the tier itself is named."""
    text = (PROFILES / "h100x2.toml").read_text() + vlm("more", "bf16", 0.83)
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    line = str(caught.value)
    assert line.startswith("x.toml: does not fit: cuda:0 needs 150.4 GB of 80.8 GB; ")
    assert "\n" not in line
    assert "what would: the profile without tier more" in line


def test_a_remedy_fits() -> None:
    """What the line proposes is taken at its word: with that change the profile is accepted."""
    text = HEAD + vlm("a", "bf16", 0.9)
    with pytest.raises(ConfigError, match=r'what would: tier a with precision = "fp8" and memory_share = 0.49'):
        parsed(HEAD + vlm("a", "bf16", 0.95))
    parsed(HEAD + vlm("a", "fp8", 0.49))
    with pytest.raises(ConfigError, match='tier first with device = "cuda:1"'):
        parsed(text.replace("0.9", "0.94"))
    parsed(text.replace("0.9", "0.94").replace('device = "cuda:0"', 'device = "cuda:1"', 1))
    with pytest.raises(ConfigError, match=r"the host needs 41\.5 GB of 10\.0 GB"):
        parsed(HEAD.replace("200_000", "10_000") + vlm("a", "fp8", 0.5, 'residency = "sleep"\n'))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + vlm("a", "fp8", 0.4), r"tier a: qwen3-vl-32b-instruct needs memory_share 0.49 of cuda:0, not 0.4"),
        (
            HEAD.replace("80_000", "24_000") + vlm("a", "fp8", 0.9),
            r"tier a: qwen3-vl-32b-instruct does not fit cuda:0: its weights .* need 38.5 GB of 22.8 GB",
        ),
        (HEAD + vlm("a", "fp8", 0.5).replace("cuda:0", "cuda:2"), "tier a: device cuda:2 is not one of the profile's"),
        (HEAD + vlm("a", "fp8", 0.5, "tensor_parallel = 3\n"), "tensor_parallel 3, but 2 of the devices"),
        (HEAD + "tensor_parallel = 2\n", "tensor_parallel 2 is for served models, natix-roadwork-vit runs in"),
        (
            'name = "p"\n' + vlm("a", "fp8", 0.5, "tensor_parallel = 2\n").replace("cuda:0", "cpu"),
            "tier a: tensor_parallel 2 is for devices, and a processor is one",
        ),
        (
            'name = "p"\n' + vlm("a", "fp8", 0.5).replace("cuda:0", "cpu") + "[tiers.server]\ndata_parallel = 2\n",
            "tier a: data_parallel 2 is for devices, and a processor is one",
        ),
        (HEAD + "memory_share = 0.5\n", "memory_share is for served models"),
        (HEAD.replace("cuda:1", "cuda:0", 1), "cuda:0 stands twice"),
        (HEAD.replace("cuda:1", "gpu1", 1), "devices"),
        (HEAD + vlm("a", "bf16", 0.9).replace("qwen3-vl-32b-instruct", "phi-4-multimodal"), ""),
        (HEAD + vlm("a", "fp8", 0.9).replace("qwen3-vl-32b-instruct", "phi-4-multimodal"), "no weights of it in fp8"),
        ('name = "p"\n' + vlm("a", "fp8", 0.5, "tensor_parallel = 2\n"), "needs the profile's list of devices"),
    ],
)
def test_what_a_profile_says_of_devices_is_checked(text: str, words: str) -> None:
    """One line with the tier and the key; empty: nothing is wrong with this one."""
    if not words:
        parsed(text)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        parsed(text)
    assert str(caught.value).startswith("x.toml: ")


def test_without_a_list_of_devices_nothing_is_counted() -> None:
    """A second host may say nothing of its cards."""
    parsed('name = "p"\n' + vlm("a", "bf16", 0.9) + vlm("b", "bf16", 0.9))


def test_least_room_is_counted_in_the_share() -> None:
    """The smallest share that is accepted holds the weights and the least room, and a hundredth less does not."""
    weights = weight_bytes(load_model("qwen3-vl-32b-instruct"), "fp8")
    assert 0.48 * 80e9 < weights + LEAST_ROOM_BYTES <= 0.49 * 80e9
    parsed(HEAD + vlm("a", "fp8", 0.49))


def test_a_host_with_less_is_told_so() -> None:
    """nvidia-smi's own lines: a card of 24 GB where 85 were promised, no second card, too little host memory."""
    here = devices(read_gpus("0, GPU-3f2a9c1e-0000-0000-0000-000000000000, 24564\n"))
    profile = load_profile("h100x2")
    lacks = missing(profile, here, host_memory_bytes=64_000_000_000)
    assert lacks[0] == "cuda:0 has 25.8 GB, the profile says 85.0 GB"
    assert lacks[1].startswith("cuda:1: no such GPU here (there are: cuda:0, cuda:GPU-3f2a")
    assert lacks[2] == "the host has 64.0 GB of memory, the profile says 128.0 GB"
    h100 = Device("cuda:0", 81_559 * 2**20)
    assert missing(profile, {"cuda:0": h100, "cuda:1": h100}, host_memory_bytes=10**12) == []


def test_a_gpu_without_memory_of_its_own_is_not_counted() -> None:
    """nvidia-smi says [N/A] where host and GPU share theirs."""
    assert devices(read_gpus("0, GPU-1, [N/A]\n")) == {}


def test_the_command() -> None:
    """A table for people, the same figures for machines; a profile without devices says that nothing was counted."""
    done = run(*FLEET, "plan", "--profile", "h100x2")
    assert done.returncode == 0, done.stderr
    plan = make_plan(load_profile("h100x2"))
    for device in plan.devices:
        assert f"{device.name}: needs {device.needed_bytes / 1e9:.1f} GB of {USABLE * 85:.1f} GB" in done.stdout
    assert "qwen3-vl-32b-instruct (fp8)" in done.stdout
    done = run(*FLEET, "plan", "--profile", "h100x2", "--json")
    assert msgspec.json.decode(done.stdout, type=Plan) == plan
    done = run(*FLEET, "plan", "--profile", "demo")
    assert done.stdout == "the tiers run on the CPU, so no GPU memory to count: scout-s, scout-m\n"
    done = run(*FLEET, "plan", "--profile", "demo", "--check")
    assert (done.returncode, "this host has all" in done.stdout) == (0, False), done.stderr
    assert "nothing to check: the profile lists no [[devices]]" in done.stdout


@pytest.mark.parametrize("name", SHIPPED)
def test_a_narrow_table_cuts_nothing(name: str) -> None:
    """At 80 columns every tier, model and size is whole, and no line is longer, piped or not."""
    done = run(*FLEET, "plan", "--profile", name, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "…" not in done.stdout
    words = done.stdout.split()
    for device in make_plan(load_profile(name)).devices:
        for need in device.tiers:
            assert {need.tier, *(word for model in need.models for word in model.split())} <= set(words)
            assert shown(need.host_bytes) in done.stdout


def test_a_tier_on_a_device_without_a_list() -> None:
    """It is not said to be on the CPU."""
    profile = parsed('name = "p"\n' + vlm("a", "bf16", 0.9))
    assert uncounted(make_plan(profile), profile) == ["not counted, as the profile lists no [[devices]]: a"]


def test_what_does_not_fit_starts_nowhere(tmp_path: Path) -> None:
    """plan, worker and up refuse it with status 78 and the same line, before anything is started."""
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + vlm("a", "bf16", 0.95))
    for command in (["plan"], ["worker", "first"], ["up"]):
        refuses(run(*FLEET, *command, "--profile", str(path)), ConfigError, "does not fit: cuda:0 needs", "what would")


def test_a_host_without_the_cards_is_told_so() -> None:
    """Where there is no nvidia-smi there is no GPU: --check ends with status 78."""
    done = run(*FLEET, "plan", "--profile", "h100x2", "--check", PATH="/nowhere")
    refuses(done, ConfigError, "profile 'h100x2': cuda:0: no such GPU here (there are: none)")
