"""What a profile refuses, and how it says so."""

import msgspec
import pytest

from configs.errors import ConfigError
from configs.profile import load_profile, parse_profile, profiles

GOOD = """
name = "p"
[[tiers]]
name = "small"
model = "scout-s"
accept_above = 0.9
accept_below = 0.1
[[tiers]]
name = "large"
model = "scout-m"
"""


def test_a_good_profile() -> None:
    """Tiers are in order, defaults are filled in, and the digest is stable."""
    profile = parse_profile(GOOD.encode(), "x.toml")
    assert [tier.name for tier in profile.tiers] == ["small", "large"]
    assert [tier.name for tier in profile.after("small")] == ["large"]
    assert profile.after("large") == ()
    assert profile.digest() == parse_profile(GOOD.encode(), "y.toml").digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.9", "0.95"),
        ("0.1", "0.2"),
        ('name = "small"', 'name = "tiny"'),
        ('model = "scout-m"', 'model = "scout-s"'),
        ('model = "scout-m"', 'model = "scout-m"\nweight = 2.0'),
        ('model = "scout-m"', 'model = "scout-m"\n[photos]\nmax_side_px = 640'),
    ],
)
def test_another_decision_is_another_digest(old: str, new: str) -> None:
    """Workers that decide otherwise must not share a fleet."""
    other = parse_profile(GOOD.replace(old, new).encode(), "x.toml")
    assert other.digest() != parse_profile(GOOD.encode(), "x.toml").digest()


def test_the_order_of_tiers_is_in_the_digest() -> None:
    """The same tiers in another order are another cascade."""
    profile = parse_profile(GOOD.encode(), "x.toml")
    assert msgspec.structs.replace(profile, tiers=profile.tiers[::-1]).digest() != profile.digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "p"', 'name = "second-host"'),
        ('model = "scout-m"', 'model = "scout-m"\ndevice = "cuda:1"\nworkers = 2\nthreads = 8\nmax_batch = 256'),
        ('model = "scout-m"', 'model = "scout-m"\n[delivery]\nlease_s = 30.0'),
        ('model = "scout-m"', 'model = "scout-m"\n[collector]\ndatabase = "sqlite:////data/v.db"'),
        ('model = "scout-m"', 'model = "scout-m"\n[photos]\nstore = "file:///mnt/photos"'),
    ],
)
def test_hosts_of_one_fleet_may_differ_in_what_decides_nothing(old: str, new: str) -> None:
    """Devices, workers, threads, leases, paths and the profile's name are not in the digest."""
    other = parse_profile(GOOD.replace(old, new).encode(), "x.toml")
    assert other.digest() == parse_profile(GOOD.encode(), "x.toml").digest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("accept_above = 0.9", "accept_abov = 0.9"), r"accept_abov.*\$\.tiers\[0\]|tiers\[\.\.\.\]"),
        (("accept_above = 0.9", "accept_above = 1.9"), "accept_above"),
        (("accept_above = 0.9", "accept_above = 0.05"), "must be under"),
        (('name = "large"', 'name = "small"'), "two tiers"),
        (('name = "large"', 'name = "collector"'), "stop"),
        (('name = "large"', 'name = "La rge"'), "name"),
        (('model = "scout-m"', 'model = "nobody"'), r"tiers\[1\] \(large\): model 'nobody'.*natix-fleet models"),
        (('model = "scout-m"', 'model = "scout-m"\ndevice = "gpu"'), "device 'gpu'"),
        (('name = "p"', 'name = "p'), r"x\.toml"),
        (('name = "p"', ""), "name"),
    ],
)
def test_bad_profiles(change: tuple[str, str], words: str) -> None:
    """One line that names the file and the key."""
    with pytest.raises(ConfigError, match=words) as caught:
        parse_profile(GOOD.replace(*change).encode(), "x.toml")
    assert str(caught.value).startswith("x.toml: ")
    assert "\n" not in str(caught.value)


def test_no_such_profile() -> None:
    """The error lists the profiles that there are."""
    with pytest.raises(ConfigError, match=r"the project has .*demo"):
        load_profile("nobody")


def test_every_profile_of_the_project_loads() -> None:
    """What is shipped is valid."""
    for name in profiles():
        load_profile(name)


CONSENSUS = "[consensus]\nintercept = 0.0\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("model = ", "weight = 0.0\nmodel = "), "no vote has a weight"),
        (GOOD + CONSENSUS + "slopes = { scout-s = 1.0, scout-m = 1.0, x = 1.0 }\n", "no tier has the model 'x'"),
        (GOOD + CONSENSUS + "slopes = { scout-s = 1.0 }\n", "model 'scout-m' has weight 1.0 and no slope"),
    ],
)
def test_votes_that_nobody_hears_are_refused(text: str, said: str) -> None:
    """A profile that would end every photo as a void, or whose consensus is of other models."""
    with pytest.raises(ConfigError, match=said):
        parse_profile(text.encode(), "test")


PRESSED = 'name = "p"\n[[tiers]]\nname = "p"\nmodel = "qwen3-vl-4b-kvpress"\n[tiers.server]\n'
SERVED = 'name = "p"\n' + "".join(
    f'[[tiers]]\nname = "{name}"\nmodel = "qwen3-vl-4b-instruct"\ndevice = "DEVICE"\n{name}-MORE\n'
    f"[tiers.server]\n{name}-SERVER\n"
    for name in ("a", "b", "c")
)


def served(more: str = "", server: str = "", device: str = "cuda:0", **others: str) -> str:
    """Three served tiers; what is said is of the second, and of the server of another by its name."""
    text = SERVED.replace("DEVICE", device).replace("b-MORE", more).replace("b-SERVER", server)
    for name in ("a", "c"):
        text = text.replace(f"{name}-MORE", "").replace(f"{name}-SERVER", others.get(name, ""))
    return text


def test_ports_of_served_tiers() -> None:
    """One after another from 8100 on, but for those that say theirs."""
    profile = parse_profile(served(server="port = 9000").encode(), "x.toml")
    assert [profile.server_url(tier)[-4:] for tier in profile.tiers] == ["8100", "9000", "8102"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (served(server="ports = 9000"), r"unknown field `ports`.*tiers\[1\]\.server"),
        (served(server="port = 65536"), r"<= 65535.*server\.port"),
        (served(server="port = -1"), r">= 0.*server\.port"),
        (served(server="port = 9000", a="port = 9000"), r"tiers\[1\] \(b\): port 9000 is that of tier a"),
        (served(server="port = 8102"), r"tiers\[2\] \(c\): port 8102 is that of tier b"),
        (served(server="lmcache = true"), r"tiers\[1\] \(b\): server.lmcache needs server.block_size"),
        (served(server='kv_cache_dtype = "fp4"'), "'fp4'.*kv_cache_dtype"),
        (served("memory_share = 0.5", 'url = "http://gpu:8000"'), r"tiers\[1\] \(b\): memory_share is of a server"),
        (served(server='url = "http://gpu:8000"'), "device is of a server that the fleet starts"),
        (served('residency = "sleep"', 'url = "http://gpu:8000"', "cpu"), "sleep.* is of a server"),
        (served(server='url = "http://gpu:8000"\nport = 9000', device="cpu"), r"server\.port is of a server"),
        (served(server='url = "http://gpu:8000"\nlmcache = true', device="cpu"), r"server\.lmcache is of a server"),
        (served(server='url = "http://gpu:8000"\ndata_parallel = 2', device="cpu"), r"server\.data_parallel is of a"),
        (served(server='url = "gpu:8000"', device="cpu"), "'gpu:8000' is no http://HOST:PORT"),
        (served(server='url = "http://gpu:65536"', device="cpu"), "'http://gpu:65536' is no http://HOST:PORT"),
        (served(server='url = "http://u:p@gpu:8000"', device="cpu"), "is no http://HOST:PORT"),
        (served(server='url = "http://a..b:80"', device="cpu"), "is no http://HOST:PORT"),
        (served(server='url = "http://gpu:8000?x"', device="cpu"), "is no http://HOST:PORT"),
        (served(server='url = "http://:80"', device="cpu"), "is no http://HOST:PORT"),
        (served('precision = "fp8"', 'url = "http://gpu:8000"', "cpu"), "precision is of a server"),
        (served(server='url = "http://gpu:8000"\nmax_num_seqs = 7', device="cpu"), r"server\.max_num_seqs is of a"),
        (
            served(server='url = "http://gpu:8000"\nprefix_caching = false', device="cpu"),
            r"server\.prefix_caching is of",
        ),
        (served(server='url = "http://gpu:8000"\nwake_items = 7', device="cpu"), r"server\.wake_items is of a"),
        (
            GOOD + "[tiers.server]\nport = 9000\n",
            r"tiers\[1\] \(large\): scout-m runs in the worker: no \[tiers.server\]",
        ),
        (
            served().replace(
                'model = "qwen3-vl-4b-instruct"',
                'panel = [{ model = "qwen3-vl-4b-instruct" }, { model = "scout-s" }]',
                1,
            ),
            r"tiers\[0\] \(a\): a served model is a tier of its own",
        ),
        (
            served("max_batch = 32", "in_flight = 97"),
            r"tiers\[1\] \(b\): server.in_flight 97, but threads x max_batch brings 96 at most",
        ),
        (
            PRESSED + "max_outside = 0.9\nin_flight = 8\n",
            r"tiers\[0\] \(p\): qwen3-vl-4b-kvpress runs in the worker: max_outside is all that it takes of",
        ),
        (
            served('residency = "sleep"').replace("qwen3-vl-4b-instruct", "qwen3-vl-8b-thinking")
            + '[[tiers]]\nname = "panel"\npanel = [{ model = "sam3" }, { model = "sam3-agent" }]\n',
            r"tiers\[3\] \(panel\): sam3-agent asks qwen3-vl-8b-thinking, whose tier sleeps: nobody would wake it",
        ),
    ],
)
def test_what_a_profile_says_of_its_servers_is_checked(text: str, said: str) -> None:
    """Unknown keys, ports that are none or taken twice, and what is not decided here: one line that names the key."""
    with pytest.raises(ConfigError, match=said) as caught:
        parse_profile(text.encode(), "x.toml")
    assert "\n" not in str(caught.value)


def test_a_server_of_somebody_else() -> None:
    """It takes no port, no device and no memory here."""
    profile = parse_profile(served(server='url = "http://gpu:8102/"', device="cpu").encode(), "x.toml")
    assert profile.server_url(profile.tiers[1]) == "http://gpu:8102"


def test_a_model_under_a_press_says_which_answers_are_votes() -> None:
    """It is asked in the worker, and max_outside is its tier's to say; it decides, so it is in the digest."""
    digests = {parse_profile((PRESSED + f"max_outside = {most}\n").encode(), "x.toml").digest() for most in (0.5, 0.9)}
    assert len(digests) == 2
