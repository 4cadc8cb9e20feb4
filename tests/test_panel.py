"""Several models in one tier: each has its vote, its weight, and the right to abstain."""

import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from PIL import Image

from configs.errors import ConfigError
from configs.model import load_model
from configs.profile import load_profile, parse_profile
from producers.scenes import render
from routing.consensus import pool
from routing.messages import Vote
from tests.test_stops import photos
from workers.engines import DeviceMemoryError, Shot
from workers.panel import ContractError, Member, Panel, build_panel
from workers.photos import _shot

PROFILE = """
name = "panel"
[[tiers]]
name = "scouts"
accept_above = 0.875
accept_below = 0.15
agree = 1.0
panel = [{ model = "scout-s", weight = 1.0 }, { model = "scout-m", weight = 3.0 }]
[[tiers]]
name = "last"
model = "scout-m"
"""


class Says:
    """A test's engine: a score by input, or an abstention; sees every input that it is given."""

    def __init__(self, score_of: Callable[[int], float | None]) -> None:
        self._score_of = score_of
        self.seen: list[int] = []

    def load(self) -> None: ...

    def warm_up(self) -> None: ...

    def prepare(self, photo: Image.Image, shot: Shot) -> int | None:
        """By the photo's width; a square one is not for it."""
        return None if photo.width == photo.height else photo.width + shot.position

    def score(self, inputs: Sequence[Any]) -> list[float | None]:
        self.seen += inputs
        return [self._score_of(one) for one in inputs]


def panel(*engines: Says) -> Panel:
    keys = ("scout-s", "scout-m", "scout-s")
    return Panel("t", [Member(load_model(key), engine, 1.0) for key, engine in zip(keys, engines, strict=False)])


def test_each_member_scores_each_photo() -> None:
    """Columns become rows: photo by photo, member by member, in order."""
    both = panel(Says(float), Says(lambda x: -x))
    assert both.score([(1, 10), (2, 20)]) == [(1.0, -10), (2.0, -20)]
    assert both.score([]) == []


def test_a_photo_that_is_not_for_a_member_never_reaches_it() -> None:
    """prepare() said None: no score, and the others' scores stay with their photos."""
    picky, other = Says(float), Says(float)
    two = panel(picky, other)
    shots = [Shot(position=i) for i in range(3)]
    pictures = [Image.new("RGB", size) for size in ((5, 4), (4, 4), (7, 4))]
    prepared = [two.prepare(picture, shot) for picture, shot in zip(pictures, shots, strict=True)]
    assert [scores[0] for scores in two.score([(one[0], 1) for one in prepared])] == [5.0, None, 9.0]
    assert picky.seen == [5, 9]


def test_who_abstains_has_no_vote() -> None:
    """None is neither 0.5 nor a vote; the others' votes carry their names, weights and calibrators."""
    two = panel(Says(lambda _: None), Says(lambda _: 0.5))
    (scores,) = two.score([(1, 1)])
    (vote,) = two.votes(scores, 3.0)
    spec = load_model("scout-m")
    assert (vote.tier, vote.model, vote.weight, vote.latency_ms) == ("t", spec.name, 1.0, 3.0)
    p = 1 / (1 + math.exp(-(spec.calibrator.slope * 0.5 + spec.calibrator.intercept)))
    assert vote.p == pytest.approx(p)


@pytest.mark.parametrize("bad", [math.nan, "short"])
def test_the_contract_is_checked_member_by_member(bad: Any) -> None:
    """A score that is not a number, or one too few, names the engine's module."""
    broken = Says(lambda _: bad)
    if bad == "short":
        broken.score = lambda inputs: [0.0] * (len(inputs) - 1)  # type: ignore[method-assign]
    with pytest.raises(ContractError, match=__name__):
        panel(Says(float), broken).score([(1, 1), (2, 2)])


def test_a_full_batch_that_does_not_fit_is_refused_at_the_start() -> None:
    """Not found out by photos: max_batch is too large for the device, and the line names it."""
    narrow = Says(float)

    def no_memory() -> None:
        raise DeviceMemoryError("tried to allocate 20 GB")

    narrow.warm_up = no_memory  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"max_batch photos of model 'scout-s'.*20 GB"):
        panel(narrow).warm_up()


def test_films_of_two_sources_stay_two() -> None:
    """Both may be called 0001; a still photo has no film."""
    shots = [_shot(replace(photo, source=source, sequence="0001")) for photo in photos(1) for source in ("a", "b")]
    assert shots[0].sequence != shots[1].sequence
    assert _shot(photos(1)[0]).sequence == ""


def test_a_panel_of_real_models() -> None:
    """Two ONNX models in one panel say of a photo what each says alone."""
    profile = parse_profile(PROFILE.encode(), "test")
    tier = profile.tier("scouts")
    two = build_panel(tier, profile.models()["scouts"], "cpu")
    two.load()
    two.warm_up()
    assert two.input_px == 288
    pictures = [render(seed)[0] for seed in range(3)]
    together = two.score([two.prepare(picture, Shot()) for picture in pictures])
    for i, member in enumerate(two.members):
        alone = member.engine.score([member.engine.prepare(picture, Shot()) for picture in pictures])
        assert [scores[i] for scores in together] == pytest.approx(alone, abs=1e-4)


def test_a_fleet_with_a_panel(tmp_path: Path) -> None:
    """Through real processes: two votes a photo from the first tier, who disagree climbs, and the pool is theirs."""
    (tmp_path / "panel.toml").write_text(PROFILE)
    run = [sys.executable, "-m", "ops.cli", "run", "--profile", "panel.toml", "--photos", "rendered:60"]
    done = subprocess.run(
        [*run, "--flower-port", "0"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with sqlite3.connect(tmp_path / "var/run/verdicts.db") as database:
        rows = database.execute("select p, tier, votes from verdicts").fetchall()
    assert len(rows) == 60
    accept = load_profile(str(tmp_path / "panel.toml")).tiers[0]
    for p, tier, text in rows:
        votes = [Vote(*vote) for vote in json.loads(text)]
        first = [vote for vote in votes if vote.tier == "scouts"]
        assert [(vote.model.partition("@")[0], vote.weight) for vote in first] == [("scout-s", 1.0), ("scout-m", 3.0)]
        assert p == pytest.approx(pool(votes))
        if tier == "scouts":
            assert len({vote.p >= 0.5 for vote in first}) == 1
            assert p >= accept.accept_above or p <= accept.accept_below
        else:
            assert len(votes) == 3
    assert {tier for _, tier, _ in rows} == {"scouts", "last"}
