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
