"""Reaping by observation: who is silent, by one watcher's own clock."""

import os
import time
from typing import NoReturn

import pytest

from configs.profile import Delivery, Profile, Tier
from ops.server import EmbeddedServer
from routing.broker import Doorbells, make_app
from routing.ledger import Ledger
from routing.owner import Owner, Watch

LEASE_S, GAP_S = 6.0, 2.5


def samples(watch: Watch, beats: list[dict[str, int]], start_s: float = 0.0, step_s: float = 1.0) -> list[str]:
    """Feeds samples at a steady pace; who was silent at the last one."""
    silent: list[tuple[str, int]] = []
    for i, sample in enumerate(beats):
        silent = watch.sample(sample, start_s + i * step_s)
    return [owner for owner, _ in silent]


def test_a_beat_that_stands_still_for_a_lease_is_silence() -> None:
    """Expects six seconds of the same beat, and not a moment less; with the beat to reap by."""
    watch = Watch(LEASE_S, GAP_S)
    assert samples(watch, [{"a": 4, "b": i} for i in range(6)]) == []
    assert watch.sample({"a": 4, "b": 6}, 6.0) == [("a", 4)]


def test_a_beat_that_moves_starts_its_lease_anew() -> None:
    """Expects an owner that beats once in five seconds to live."""
    watch = Watch(LEASE_S, GAP_S)
    assert samples(watch, [{"a": i // 5} for i in range(40)]) == []


def test_a_beat_that_goes_back_is_a_sign_of_life() -> None:
    """Expects any change to count, for a server that went back in time shows smaller beats."""
    watch = Watch(LEASE_S, GAP_S)
    assert samples(watch, [{"a": 9 - i // 5} for i in range(40)]) == []


def test_a_paused_watcher_starts_over() -> None:
    """Expects a gap between samples to forget everything: the server, not the owners, may have stood still."""
    watch = Watch(LEASE_S, GAP_S)
    samples(watch, [{"a": 1}] * 6)
    assert watch.sample({"a": 1}, 8.6) == []
    assert samples(watch, [{"a": 1}] * 5, start_s=9.6) == []
    assert watch.sample({"a": 1}, 14.6) == [("a", 1)]


def test_a_gap_at_its_bound_is_none() -> None:
    """Expects samples exactly as far apart as allowed to count."""
    watch = Watch(LEASE_S, GAP_S)
    assert samples(watch, [{"a": 1}] * 4, step_s=GAP_S) == ["a"]


def test_an_owner_that_left_is_forgotten() -> None:
    """Expects an owner that comes back under the same beat to be watched from its return."""
    watch = Watch(LEASE_S, GAP_S)
    samples(watch, [{"a": 1}] * 6)
    assert watch.sample({}, 6.0) == []
    assert watch.sample({"a": 1}, 7.0) == []


def test_silence_lasts_until_somebody_reaps() -> None:
    """Expects a silent owner to be named at every sample, for the first reap may get no answer."""
    watch = Watch(LEASE_S, GAP_S)
    samples(watch, [{"a": 1}] * 7)
    assert watch.sample({"a": 1}, 7.0) == [("a", 1)]


class Ended(BaseException):
    """What ends a process, in a test's own."""


def _end(status: int) -> NoReturn:
    raise Ended(status)


@pytest.fixture
def stalled(server: EmbeddedServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Owner:
    """An owner whose work in hand stands still; it may for half a second. Beats are the test's."""
    monkeypatch.setattr(os, "_exit", _end)
    profile = Profile(name="x", tiers=(Tier(name="first", model="scout-s"),), delivery=Delivery(beat_s=0.1))
    doorbells = Doorbells(make_app(server.address, profile))
    owner = Owner(ledger, profile, doorbells, ["first"], stalled_s=lambda: 100.0, stall_s=0.5)
    ledger.enlist(owner.id, "x")
    return owner


def beat_every(owner: Owner, every_s: float, for_s: float) -> None:
    end_s = time.monotonic() + for_s
    while time.monotonic() < end_s:
        owner._beat()
        time.sleep(every_s)


def test_a_stall_beside_a_steady_beat_ends_the_process(stalled: Owner) -> None:
    """Expects the end half a second after the beats have begun, not at once."""
    begun_s = time.monotonic()
    with pytest.raises(Ended):
        beat_every(stalled, 0.05, 5)
    assert time.monotonic() - begun_s >= 0.4


def test_an_outage_is_no_stall(stalled: Owner) -> None:
    """Expects beats with gaps, as when the server is away, to end nothing: what stands still may be waiting for it."""
    beat_every(stalled, 0.3, 1.5)
