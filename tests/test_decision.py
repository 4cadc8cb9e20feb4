"""Where an item goes next."""

import msgspec
import pytest

from configs.model import Calibrator
from configs.profile import Tier
from routing.consensus import pool
from routing.decision import P_MIN, calibrate, decide, settle_held, with_votes
from routing.messages import Item, Verdict, Vote

TIER = Tier(name="small", model="m", accept_above=0.9, accept_below=0.1)
LARGE = Tier(name="large", model="m")
NOW_MS = 1_000_000


def item(*p: float, deadline_ms: int = 0, weight: float = 1.0) -> Item:
    votes = tuple(Vote("small", "m@1", x, weight, 1.0) for x in p)
    return Item(
        source="s",
        position=0,
        origin="o",
        label=1,
        sha256=bytes(32),
        stored_bytes=0,
        size_px=(1, 1),
        votes=votes,
        deadline_ms=deadline_ms,
    )


def test_calibrate_is_platt_and_never_certain() -> None:
    """A raw logit is scaled, shifted and squashed; what comes out can be outvoted."""
    assert calibrate(2.0, Calibrator(slope=0.5, intercept=-1.0)) == pytest.approx(0.5)
    assert calibrate(1e9, Calibrator()) == 1 - P_MIN
    assert calibrate(-1e9, Calibrator()) == P_MIN
    assert calibrate(float("inf"), Calibrator()) == 1 - P_MIN


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    """A broken engine is heard, not averaged."""
    with pytest.raises(ValueError, match="not a number"):
        calibrate(float("nan"), Calibrator())


def test_abstaining_is_no_vote() -> None:
    """No vote cast leaves the votes as they were and forgets the faults."""
    faulty = msgspec.structs.replace(item(0.3), faults=2, tries=1)
    assert with_votes(faulty, []) == item(0.3)


@pytest.mark.parametrize("p", [0.9, 0.95, 0.1, 0.01])
def test_sure_items_settle(p: float) -> None:
    """At a threshold or beyond it the tier settles."""
    end = decide(item(p), TIER, [LARGE], NOW_MS)
    assert isinstance(end, Verdict)
    assert (end.p, end.tier, end.reason) == (p, "small", "")


@pytest.mark.parametrize("p", [0.11, 0.5, 0.89])
def test_unsure_items_climb(p: float) -> None:
    """Between the thresholds the next tier is asked."""
    assert decide(item(p), TIER, [LARGE], NOW_MS) == "large"


def test_the_last_tier_always_settles() -> None:
    """Where there is nobody left to ask, the pool decides."""
    end = decide(item(0.5, 0.6), TIER, [], NOW_MS)
    assert isinstance(end, Verdict)
    assert end.p == pytest.approx(pool(item(0.5, 0.6).votes))


def test_no_vote_climbs_and_at_the_end_is_a_void() -> None:
    """An item that every tier abstained on is quarantined, with that reason."""
    assert decide(item(), TIER, [LARGE], NOW_MS) == "large"
    end = decide(item(), TIER, [], NOW_MS)
    assert isinstance(end, Verdict)
    assert end.void
    assert end.reason == "no-vote"


def test_a_vote_of_no_weight_decides_nothing() -> None:
    """Weight 0: recorded, but neither settles nor counts."""
    assert decide(item(0.99, weight=0.0), TIER, [LARGE], NOW_MS) == "large"


def test_past_its_deadline_an_item_settles_with_what_it_has() -> None:
    """The verdict carries the reason, so that a reader can tell it from a sure one."""
    end = decide(item(0.5, deadline_ms=NOW_MS), TIER, [LARGE], NOW_MS)
    assert isinstance(end, Verdict)
    assert (end.p, end.reason) == (0.5, "deadline")


def test_held_without_votes_is_a_void() -> None:
    """Nothing is made up for an item that nobody looked at."""
    assert settle_held(item(), NOW_MS, "deadline").void


BANDS = [
    Tier(name=name, model="m", band=band)
    for name, band in (("big", (0.0, 0.25)), ("middle", (0.25, 0.7)), ("small", (0.7, 0.95)))
]


@pytest.mark.parametrize(
    ("p", "way"), [(0.5, "big"), (0.6, "big"), (0.7, "middle"), (0.3, "middle"), (0.9, "small"), (0.04, "small")]
)
def test_an_item_climbs_to_the_tier_of_its_certainty(p: float, way: str) -> None:
    """By c = |2 p - 1|: a sure negative is as certain as a sure positive."""
    assert decide(item(p), msgspec.structs.replace(TIER, accept_above=1.0, accept_below=0.0), BANDS, NOW_MS) == way


@pytest.mark.parametrize("p", [0.02, 0.98])
def test_who_is_more_certain_than_every_band_settles(p: float) -> None:
    """No larger model is asked about p = 0.02, nor about 0.98, even where the tier itself accepts nothing."""
    end = decide(item(p), msgspec.structs.replace(TIER, accept_above=1.0, accept_below=0.0), BANDS, NOW_MS)
    assert isinstance(end, Verdict)
    assert end.p == p


def test_without_a_vote_an_item_goes_to_the_lowest_band() -> None:
    """Nothing is known of it, so nothing is certain."""
    assert decide(item(), TIER, BANDS, NOW_MS) == "big"


@pytest.mark.parametrize(("agree", "settles"), [(0.0, True), (0.6, True), (0.7, True), (0.8, False)])
def test_a_tier_settles_only_if_enough_of_its_votes_agree(agree: float, settles: bool) -> None:
    """Seven of ten on one side: 0.7 of those that voted; the pool alone would settle."""
    split = item(*[0.999] * 7, *[0.4] * 3)
    end = decide(split, msgspec.structs.replace(TIER, agree=agree), [LARGE], NOW_MS)
    assert isinstance(end, Verdict) is settles


def test_votes_of_other_tiers_do_not_count_for_agreement() -> None:
    """Three of this tier agree; what a tier below said does not."""
    votes = (Vote("below", "x@1", 0.01, 0.0, 1.0), *item(0.99, 0.99, 0.99).votes)
    end = decide(
        msgspec.structs.replace(item(), votes=votes), msgspec.structs.replace(TIER, agree=1.0), [LARGE], NOW_MS
    )
    assert isinstance(end, Verdict)
