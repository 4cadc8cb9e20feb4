"""Films: which frames are looked at together, and what it means that points hold still."""

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from tests.engines.checkpoints import Shelf, engine_of, photos, spec_of
from workers.engines import Runtime, Shot, build
from workers.engines.cotracker import CHECKOUT_VARIABLE, FRAME_PX, Frame, films, log_odds, steady_share

GREY = np.zeros((*FRAME_PX, 3), np.uint8)


def frames(*names: str) -> list[Frame]:
    """Of names such as a3: sequence and position."""
    return [Frame(GREY, name[0], int(name[1:])) for name in names]


def test_frames_are_grouped_and_ordered() -> None:
    """Each film by its positions, whatever the order of the batch; a short one is left out."""
    batch = frames("a3", "b1", "a1", "c5", "b0", "a2", "b2")
    assert films(batch, least_frames=2, most_frames=8) == [[4, 1, 6], [2, 5, 0]]
    assert films(batch, least_frames=4, most_frames=8) == []
    assert films([], least_frames=2, most_frames=8) == []


def test_a_long_film_is_cut_evenly() -> None:
    """No stretch is longer than a batch may be, and none is a remnant too short to score."""
    batch = frames(*(f"a{i}" for i in range(9)))
    assert films(batch, least_frames=4, most_frames=8) == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=40), st.integers(1, 9), st.integers(1, 20)
)
def test_every_frame_is_in_one_film_at_most(names: list[tuple[str, int]], least: int, most: int) -> None:
    """Stretches do not overlap, hold one film in order, and keep to both bounds."""
    batch = [Frame(GREY, *name) for name in names]
    found = films(batch, least, most)
    places = [i for film in found for i in film]
    assert len(places) == len(set(places))
    for film in found:
        assert least <= len(film) <= most
        assert len({batch[i].sequence for i in film}) == 1
        positions = [batch[i].position for i in film]
        assert positions == sorted(positions)


def tracks(points: int = 10, length: int = 5) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Points that stand still and are seen throughout."""
    places = np.random.default_rng(0).uniform(0, 384, (1, points, 2)).astype(np.float32)
    return places.repeat(length, axis=0), np.ones((length, points), bool)


def test_what_stands_still_is_steady() -> None:
    """All points, each step: 1. A camera that moves them all alike changes nothing."""
    places, seen = tracks()
    assert steady_share(places, seen) == 1
    drive = np.linspace(0, 200, 5, dtype=np.float32)[:, None, None]
    assert steady_share(places + drive, seen) == 1


def test_what_moves_by_itself_is_not() -> None:
    """Two points of ten that go their own way, 50 px a step where STEADY is some 10: 8 of 10 are left."""
    places, seen = tracks()
    places[:, :2, 0] += 50 * np.arange(5, dtype=np.float32)[:, None]
    assert steady_share(places, seen) == pytest.approx(0.8)
    # In one step of four only: 2 of 40 are lost.
    places, seen = tracks()
    places[3:, :2, 0] += 50
    assert steady_share(places, seen) == pytest.approx(38 / 40)


def test_what_is_hidden_is_not() -> None:
    """A point that is out of sight in one frame is lost for the step to it and the step from it."""
    places, seen = tracks()
    seen[2, 0] = False
    assert steady_share(places, seen) == pytest.approx(38 / 40)
    assert steady_share(places, np.zeros_like(seen)) == 0


def test_log_odds_are_finite() -> None:
    """At both ends too: a share is of few points."""
    assert log_odds(0.5) == 0
    assert log_odds(0.8) == pytest.approx(math.log(4))
    assert log_odds(1.0) == pytest.approx(9.21, abs=0.01)
    assert log_odds(0.0) == pytest.approx(-9.21, abs=0.01)


def test_a_still_photo_abstains() -> None:
    """A photo of no sequence is no input; one of a sequence is, at the tracker's size."""
    engine = build(spec_of("cotracker3"), Runtime())
    photo = photos(1)[0]
    assert engine.prepare(photo, Shot(position=3)) is None
    frame = engine.prepare(photo, Shot(sequence="s", position=3))
    assert frame.pixels.shape == (384, 512, 3)
    assert (frame.sequence, frame.position) == ("s", 3)


def test_without_a_clone_it_says_what_to_do(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, unset or naming something else, is named in one line."""
    shelf.put("cotracker3")
    monkeypatch.delenv(CHECKOUT_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=f"clone github.com/facebookresearch/co-tracker .* set {CHECKOUT_VARIABLE}"):
        engine_of("cotracker3")
    monkeypatch.setenv(CHECKOUT_VARIABLE, str(shelf.put("elsewhere")))
    with pytest.raises(ConfigError, match=f"set {CHECKOUT_VARIABLE}"):
        engine_of("cotracker3")


needs_clone = pytest.mark.skipif(CHECKOUT_VARIABLE not in os.environ, reason=f"{CHECKOUT_VARIABLE} names no clone")


@pytest.fixture
def tracker(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clone's own model at random weights, saved as the published ones are; it sees all points and moves none."""
    monkeypatch.syspath_prepend(os.environ[CHECKOUT_VARIABLE])
    from cotracker.predictor import CoTrackerPredictor

    torch.manual_seed(0)
    model = CoTrackerPredictor(checkpoint=None, offline=True, v2=False, window_len=60).model
    for head, bias in ((model.updateformer.flow_head, 0.0), (model.updateformer.vis_conf_head, 10.0)):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, bias)
    torch.save(model.state_dict(), shelf.put("cotracker3") / "scaled_offline.pth")
    return engine_of("cotracker3", Runtime(max_batch=3), options={"least_frames": 2})


@needs_clone
def test_films_are_scored(tracker: Any) -> None:
    """Frames of a film share a score, whatever the order of the batch: the highest, since nothing moves; one alone
    has none.
    """
    names = [("a", 2), ("b", 1), ("a", 1), ("c", 7), ("b", 2)]
    batch = [
        tracker.prepare(photo, Shot(sequence=sequence, position=position))
        for photo, (sequence, position) in zip(photos(len(names)), names, strict=True)
    ]
    highest = log_odds(1.0)
    assert tracker.score(batch) == [highest, highest, highest, None, highest]
    assert tracker.score([]) == []


@needs_clone
def test_points_out_of_sight_count_against_a_film(tracker: Any) -> None:
    """The same model, blind: each point is seen in the frame that it was laid over, and in no other."""
    torch.nn.init.constant_(tracker._track.model.updateformer.vis_conf_head.bias, -10.0)
    batch = [tracker.prepare(photo, Shot(sequence="a", position=i)) for i, photo in enumerate(photos(2))]
    assert tracker.score(batch) == [log_odds(0.0)] * 2
