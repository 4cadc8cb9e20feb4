"""How labelled votes become a consensus: fitted, checked on photos that it did not see, written, used."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

import ops.cli
from configs.errors import ConfigError
from configs.profile import Profile, Stack, load_profile, parse_profile
from ops.consensus import Worth, _print, as_toml, known_samples, require_enough, worth
from ops.serve import DATABASE
from ops.stack import Sample, cross_validate, fit
from routing.consensus import logit, sigmoid
from routing.decision import consensus
from routing.messages import Item, Verdict, Vote
from tests.test_cli import FLEET, refuses, run
from tests.test_stops import Fleet, photos
from workers.mcc import Counts
from workers.verdicts import Labelled, VerdictDatabase

#: Of the profile that the tests of the command use; the numbers of tiers and models are the demo's.
DEMO = "demo"


def made(n: int, seed: int, *, inverted: bool, abstains: bool, origins: int = 4) -> list[Sample]:
    """Votes of three models: an honest one; one that is inverted or noise; one that may abstain where there is none."""
    dice = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        label = int(dice.random() < 0.4)
        sign = 2 * label - 1
        p = {"honest": sigmoid(dice.normal(0.8 * sign, 1.2)), "crooked": sigmoid(dice.normal(0, 1.5))}
        if inverted:
            p["crooked"] = sigmoid(dice.normal(-1.5 * sign, 1.2))
        # It says nothing by itself, but that it speaks at all does.
        if not abstains or dice.random() < (0.9 if label else 0.2):
            p["shy"] = sigmoid(dice.normal(0, 0.3))
        votes = tuple(Vote("panel", f"{key}@1", value, 1.0, 0.0) for key, value in p.items())
        samples.append(Sample(f"camera-{i % origins}", label, votes))
    return samples


KEYS = ["honest", "crooked", "shy"]


def losses(samples: Sequence[Sample]) -> tuple[float, float]:
    """Log-loss of the pool, and of stacks on photos that they did not see."""
    pool = worth(samples, [consensus(sample.votes) for sample in samples])
    return pool.log_loss, worth(samples, cross_validate(samples, KEYS)).log_loss


def test_a_stack_beats_the_pool_where_votes_mislead() -> None:
    """One model is inverted, one abstains where there is no roadwork: the stack finds out, the pool cannot."""
    samples = made(2000, 1, inverted=True, abstains=True)
    pool, stack = losses(samples)
    assert stack < pool - 0.2
    fitted = fit(samples, KEYS)
    assert fitted.slopes["crooked"] < -0.5 < 0.3 < fitted.slopes["honest"]
    assert fitted.missing["shy"] < -1
    assert set(fitted.missing) == {"shy"}


def test_where_there_is_nothing_to_find_a_stack_finds_nothing() -> None:
    """Labels that no vote knows of: on photos that it did not see a stack is no better than always the same p."""
    dice = np.random.default_rng(2)
    samples = [
        msgspec.structs.replace(sample, label=int(dice.random() < 0.5))
        for sample in made(2000, 3, inverted=False, abstains=False)
    ]
    stacked = worth(samples, cross_validate(samples, KEYS))
    assert stacked.log_loss == pytest.approx(np.log(2), abs=0.02)
    assert abs(stacked.counts.mcc or 0) < 0.08


def test_a_fit_recovers_the_model_that_made_the_labels() -> None:
    """Labels drawn from a known stack: intercept, slopes and missing term come back within their standard errors."""
    dice = np.random.default_rng(4)
    truth = Stack(intercept=-0.5, slopes={"a": 1.2, "b": 0.4}, missing={"b": 0.8})
    samples = []
    for i in range(8000):
        cast = {"a": float(dice.normal(0, 1.5))}
        if dice.random() < 0.6:
            cast["b"] = float(dice.normal(0, 1.5))
        z = truth.intercept + sum(truth.slopes[key] * x for key, x in cast.items()) + 0.8 * ("b" not in cast)
        votes = tuple(Vote("t", f"{key}@1", sigmoid(x), 1.0, 0.0) for key, x in cast.items())
        samples.append(Sample(f"g{i % 5}", int(dice.random() < sigmoid(z)), votes))
    fitted = fit(samples, ["a", "b"])
    assert fitted.intercept == pytest.approx(truth.intercept, abs=0.12)
    assert fitted.slopes["a"] == pytest.approx(1.2, abs=0.1)
    assert fitted.slopes["b"] == pytest.approx(0.4, abs=0.1)
    assert fitted.missing["b"] == pytest.approx(0.8, abs=0.15)


def test_a_vote_still_to_come_is_not_one_that_was_not_needed() -> None:
    """Sure photos settle at the first tier; an unsure one there has the same vote missing, and is not sure."""
    dice = np.random.default_rng(5)
    samples = []
    for i in range(3000):
        label = int(dice.random() < 0.5)
        first = float(dice.normal(2.0 * (2 * label - 1), 2.0))
        votes = [Vote("first", "a@1", sigmoid(first), 1.0, 0.0)]
        if abs(first) < 2:
            # Unsure photos are roadwork more often than the first model thinks.
            label = int(dice.random() < sigmoid(first + 1.0))
            votes.append(Vote("second", "b@1", sigmoid(float(dice.normal(2 * (2 * label - 1), 1.0))), 1.0, 0.0))
        samples.append(Sample(f"g{i % 5}", label, tuple(votes)))
    fitted = fit(samples, ["a", "b"])
    unsure = [sample for sample in samples if len(sample.votes) == 2]
    truth = float(np.mean([sample.label for sample in unsure]))
    said = float(np.mean([consensus(sample.votes[:1], fitted) or 0 for sample in unsure]))
    assert said == pytest.approx(truth, abs=0.06)
    last_only = fit([msgspec.structs.replace(s, votes=_as_one_tier(s.votes)) for s in samples], ["a", "b"])
    worse = float(np.mean([consensus(sample.votes[:1], last_only) or 0 for sample in unsure]))
    assert abs(worse - truth) > abs(said - truth)


def _as_one_tier(votes: Sequence[Vote]) -> tuple[Vote, ...]:
    return tuple(msgspec.structs.replace(vote, tier="one") for vote in votes)


def test_groups_are_never_split() -> None:
    """Each photo is judged by a fit without its group: a group's own rule does not help it."""
    samples = [
        Sample(f"g{i % 2}", int((i // 2) % 2), (Vote("t", "a@1", 0.9 if (i // 2 + i) % 2 else 0.1, 1.0, 0.0),))
        for i in range(400)
    ]
    # In one group the model is right, in the other it is inverted: what one teaches is wrong in the other.
    assert worth(samples, cross_validate(samples, ["a"])).counts.mcc == pytest.approx(-1)


def test_only_votes_of_the_profiles_models_count() -> None:
    """A vote of another version of a model, or of a model that is gone, is another model's vote."""
    profile = load_profile(DEMO)
    (spec,) = profile.models()["scout-s"]
    now, old = Vote("scout-s", spec.name, 0.7, 1.0, 0.0), Vote("scout-s", "scout-s@0", 0.2, 1.0, 0.0)
    rows = [Labelled("s", 0, "o", 1, (now, old)), Labelled("s", 1, "o", 0, (old,)), Labelled("s", 60, "o", 0, (now,))]
    samples = known_samples(rows, profile)
    assert [(sample.group, sample.votes) for sample in samples] == [("s:0", (now,)), ("s:1", (now,))]
    two = [*rows, Labelled("t", 0, "p", 1, (now,))]
    assert {sample.group for sample in known_samples(two, profile)} == {"o", "p"}


def test_too_few_labels_are_refused() -> None:
    """Ten of the rarer label for each term: a slope a model, one more for a model that abstains."""
    profile = load_profile(DEMO)
    first, second = (specs[0].name for specs in profile.models().values())

    def votes(i: int) -> tuple[Vote, ...]:
        cast = [Vote("scout-s", first, 0.6, 1.0, 0.0), Vote("scout-m", second, 0.7, 1.0, 0.0)]
        return tuple(cast[: 1 + i % 2])

    enough = [Sample("g", int(i < 30), votes(i)) for i in range(100)]
    assert require_enough(enough, profile) == ["scout-s", "scout-m"]
    with pytest.raises(ConfigError, match=r"29 photos of the rarer label .* 30 are needed, 10 for each of 3 terms"):
        require_enough(enough[1:], profile)
    with pytest.raises(ConfigError, match=r"9 photos of the rarer .* 10 are needed, 10 for its one term"):
        require_enough([Sample("g", int(i < 9), votes(0)) for i in range(100)], profile)
    with pytest.raises(ConfigError, match=r"no labelled verdict has a vote of a model of profile 'demo'.* --profile"):
        require_enough([], profile)


@pytest.mark.parametrize(("pool", "words"), [(0.3, "for the record only; leave the profile"), (0.5, "paste it at the")])
def test_a_stack_that_is_no_better_is_not_proposed(pool: float, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is written for the record; and where all photos are of one origin the figures are said to be of that."""
    samples = [Sample(f"s:{i}", i % 2, (), "here") for i in range(4)]
    counts = Counts(tp=1, tn=1, fp=1, fn=1)
    _print(samples, ["a"], {"pool": Worth(counts, pool), "stack": Worth(counts, 0.4)}, Path("c.toml"))
    said = " ".join(capsys.readouterr().out.split())
    assert words in said
    assert ("paste it" in said) == (pool > 0.4)
    assert "the groups are stretches of it" in said
    _print(
        [*samples, Sample("t", 1, (), "there")],
        ["a"],
        {"pool": Worth(counts, pool), "stack": Worth(counts, 0.4)},
        Path("c"),
    )
    assert "stretches" not in capsys.readouterr().out


def test_what_is_written_is_a_profiles_table() -> None:
    """Pasted at the end of a profile it is read back number by number, dots in a key or not; the digest is another."""
    slopes = {"scout-s": 1.5, "scout-m": 0.5, "internvl3.5-38b": 1e-5}
    fitted = Stack(intercept=-0.1, slopes=slopes, missing={"scout-s": -0.25})
    plain = (Path(ops.cli.__file__).parents[1] / "configs/demo.toml").read_bytes()
    plain += b'[[tiers]]\nname = "v"\nmodel = "internvl3.5-38b"\ndevice = "cuda:0"\nmemory_share = 0.9\n'
    profile = parse_profile(plain + as_toml(fitted, "3 photos").encode(), "x.toml")
    assert profile.consensus == msgspec.structs.replace(fitted, fitted_on="3 photos")
    assert profile.digest() != parse_profile(plain, "y.toml").digest()


def _fill(url: str, profile: Profile, n: int) -> None:
    """Labelled verdicts of two origins: the first scout is inverted, the second is right."""
    dice = np.random.default_rng(6)
    first, second = (specs[0].name for specs in profile.models().values())
    rows = []
    for i in range(n):
        label = i % 2
        sign = 2 * label - 1
        votes = (
            Vote("scout-s", first, sigmoid(float(dice.normal(-1.5 * sign, 1.0))), 1.0, 0.0),
            Vote("scout-m", second, sigmoid(float(dice.normal(sign, 1.0))), 1.0, 0.0),
        )
        item = Item(
            source="s",
            position=i,
            origin=f"camera-{i % 3}",
            label=label,
            sha256=bytes(32),
            stored_bytes=0,
            size_px=(1, 1),
            votes=votes,
        )
        rows.append((Verdict(item=item, p=0.5, tier="scout-m"), i))
    seen = msgspec.structs.replace(rows[0][0].item, position=n, seen=True)
    unlabelled = msgspec.structs.replace(seen, position=n + 1, seen=False, label=-1)
    rows += [(Verdict(item=item, p=0.5, tier="scout-m"), n) for item in (seen, unlabelled)]
    with VerdictDatabase(url) as database:
        database.write(rows)


def test_the_command_fits_and_says_what_it_is_worth(tmp_path: Path) -> None:
    """From the database to a table for the profile; photos that a model was trained on, or without a label, are out."""
    url, out = f"sqlite:///{tmp_path / 'v.db'}", tmp_path / "consensus.toml"
    _fill(url, load_profile(DEMO), 600)
    done = run(*FLEET, "consensus", "fit", "--out", str(out), **{DATABASE: url})
    assert done.returncode == 0, done.stderr
    assert "600 labelled verdicts" in done.stdout
    assert "3 groups" in done.stdout
    pool, stack = (line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["pool"], ["stack"]))
    assert float(stack[2]) > 0.5 + float(pool[2])
    read = msgspec.toml.decode(out.read_bytes(), type=dict[str, Stack])["consensus"]
    assert read.slopes["scout-s"] < 0 < read.slopes["scout-m"]
    assert set(read.missing) == {"scout-m"}, "it was still to come when the first tier decided"
    assert "600 labelled verdicts" in read.fitted_on


def test_the_command_refuses(tmp_path: Path) -> None:
    """Too few labels, no database, a file of another name: one line each."""
    url = f"sqlite:///{tmp_path / 'v.db'}"
    _fill(url, load_profile(DEMO), 20)
    refuses(
        run(*FLEET, "consensus", "fit", "--out", str(tmp_path / "c.toml"), **{DATABASE: url}),
        ConfigError,
        "10 photos of the rarer label",
        "30 are needed",
    )
    refuses(
        run(*FLEET, "consensus", "fit", "--out", str(tmp_path / "c.toml"), **{DATABASE: f"sqlite:///{tmp_path}/no.db"}),
        ConfigError,
        "there is no verdict database at",
        "NATIX_FLEET_DATABASE=sqlite:///var/run/verdicts.db",
    )


def test_a_fleet_decides_by_its_stack(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model is inverted and its profile's stack knows: verdicts follow the stack, not the pool."""
    import tests.test_stops

    fitted = Stack(intercept=0.0, slopes={"scout-s": 1.0, "scout-m": -1.0})
    monkeypatch.setattr(
        tests.test_stops, "PROFILE", msgspec.structs.replace(tests.test_stops.PROFILE, consensus=fitted)
    )
    fleet.admit(photos(20))
    fleet.drain(lambda i: 0.2 if i % 2 else -0.2, lambda i: -4.0 if i % 2 else 4.0)
    rows = fleet.rows("s-1")
    assert len(rows) == 20
    for position, row in rows.items():
        votes = row["votes"]
        assert row["tier"] == "second"
        assert row["p"] == pytest.approx(sigmoid(logit(votes[0].p) - logit(votes[1].p)))
        assert (row["p"] > 0.5) == bool(position % 2)
        assert ((consensus(votes) or 0) > 0.5) != bool(position % 2), "the pool would have been wrong"
