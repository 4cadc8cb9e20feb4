"""Tiers by certainty at work on a real ledger: who is asked about a photo, and who never is."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

import configs.profile
import configs.prompt
import tests.test_stops
from configs.model import load_model
from configs.profile import Delivery, Profile, Stack, Tier, Voter, load_profile
from configs.serving import Server
from ops.server import EmbeddedServer
from routing.audit import audit
from routing.batches import item_batch
from routing.consensus import logit
from routing.decision import decide
from routing.messages import Item, Vote
from tests.test_stops import Fleet, photos
from workers.verdicts import VerdictDatabase

#: Level 3 as it was asked for, by certainty c = |2 p - 1|.
BANDS = {
    "qwen-4b": (0.85, 0.95),
    "molmo-4b": (0.70, 0.85),
    "molmo-8b": (0.55, 0.70),
    "phi-4": (0.40, 0.55),
    "qwen-8b": (0.25, 0.40),
    "qwen-32b": (0.0, 0.25),
}

PROFILE = Profile(
    name="banded",
    tiers=(
        Tier(name="first", model="scout-s", max_batch=16),
        *(
            Tier(name=name, model="scout-m", band=band, accept_above=0.975, accept_below=0.025, weight=20, max_batch=16)
            for name, band in BANDS.items()
        ),
        Tier(name="power", model="scout-m", weight=0.5, max_batch=16),
    ),
    delivery=Delivery(backoff_s=0.01, backoff_max_s=0.02),
)

#: P(roadwork) of the first tier, and the tier that is asked next; both sides of 0.5. None: nobody is.
WAYS: list[tuple[float, str | None]] = [
    (0.02, None),
    (0.98, None),
    (0.999, None),
    (0.06, "qwen-4b"),
    (0.93, "qwen-4b"),
    (0.14, "molmo-4b"),
    (0.86, "molmo-4b"),
    (0.2, "molmo-8b"),
    (0.8, "molmo-8b"),
    (0.27, "phi-4"),
    (0.74, "phi-4"),
    (0.34, "qwen-8b"),
    (0.66, "qwen-8b"),
    (0.4, "qwen-32b"),
    (0.5, "qwen-32b"),
    (0.61, "qwen-32b"),
]

Scores = Callable[[int], float | None]


def score(model: str, p: float) -> float:
    """The raw logit that the model's calibrator makes p of."""
    calibrator = load_model(model).calibrator
    return (logit(p) - calibrator.intercept) / calibrator.slope


def first_p(position: int) -> float:
    return WAYS[position % len(WAYS)][0]


def way(position: int) -> str | None:
    return WAYS[position % len(WAYS)][1]


def first(position: int) -> float:
    return score("scout-s", first_p(position))


class Banded:
    """The stops of a banded profile, served by hand; who was asked about which positions."""

    def __init__(self, fleet: Fleet, profile: Profile) -> None:
        self.fleet = fleet
        self._profile = profile

    def start(self, scores: Mapping[str, Scores]) -> None:
        self.stops = {tier.name: self.fleet.tier(tier.name, scores[tier.name]) for tier in self._profile.tiers}

    def drain(self) -> None:
        for _ in range(500):
            for stop in (*self.stops.values(), self.fleet.collector):
                stop.serve()
            if not self.fleet.ledger.snapshot([]).use.get("items"):
                return
        pytest.fail("not drained")

    def asked(self, tier: str) -> list[int]:
        engine = self.fleet.engines[list(self.stops).index(tier)]
        return sorted(position for batch in engine.batches for position in batch)


@pytest.fixture
def banded(
    server: EmbeddedServer, redis_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Profile], Banded]]:
    """Stops of a profile, on an empty ledger; at the end the ledger is sound."""
    started: list[Fleet] = []
    with VerdictDatabase(f"sqlite:///{tmp_path / 'v.db'}") as database:

        def of(profile: Profile) -> Banded:
            monkeypatch.setattr(tests.test_stops, "PROFILE", profile)
            started.append(Fleet(server, redis_client, database))
            return Banded(started[-1], profile)

        yield of
        for stop in started[0].started:
            stop.scorer.stop()
        audit(redis_client).raise_for_problems()


def test_each_photo_goes_to_the_tier_of_its_certainty(banded: Callable[[Profile], Banded]) -> None:
    """p = 0.02 and 0.98 (c = 0.96) are asked of nobody else; every other photo of its band only."""
    stops = banded(PROFILE)
    stops.start({"first": first, "power": lambda _: 0.0} | dict.fromkeys(BANDS, _sure))
    count = 3 * len(WAYS)
    stops.fleet.admit(photos(count))
    stops.drain()
    assert stops.asked("first") == list(range(count))
    for name in BANDS:
        expected = [i for i in range(count) if way(i) == name]
        assert expected
        assert stops.asked(name) == expected, name
    assert stops.asked("power") == [], "all were sure then"
    rows = stops.fleet.rows("s-1")
    assert {i: row["tier"] for i, row in rows.items()} == {i: way(i) or "first" for i in range(count)}
    assert {len(row["votes"]) for i, row in rows.items() if way(i)} == {2}


def _sure(position: int) -> float:
    return score("scout-m", 0.999 if position % 2 else 0.001)


def test_who_is_unsure_after_its_band_goes_past_them_all(banded: Callable[[Profile], Banded]) -> None:
    """It climbs to level 4, not to a neighbour's band, although its certainty has changed; and there it settles."""
    stops = banded(PROFILE)

    def unsure(_: int) -> float:
        # Whatever the certainty was, now it is 0.6: molmo-8b's band.
        return score("scout-m", 0.8)

    stops.start({"first": first, "power": lambda _: score("scout-m", 0.9)} | dict.fromkeys(BANDS, unsure))
    stops.fleet.admit(photos(len(WAYS)))
    stops.drain()
    climbed = [i for i in range(len(WAYS)) if way(i)]
    assert stops.asked("power") == climbed
    asked = [position for name in BANDS for position in stops.asked(name)]
    assert sorted(asked) == climbed, "somebody was asked by two bands"
    rows = stops.fleet.rows("s-1")
    assert {i for i, row in rows.items() if row["tier"] == "power"} == set(climbed)
    assert all([v.tier for v in rows[i]["votes"]] == ["first", way(i), "power"] for i in climbed)


def test_who_has_no_vote_is_asked_of_the_lowest_band(banded: Callable[[Profile], Banded]) -> None:
    """The first tier abstains: nothing is certain, so the largest model looks."""
    stops = banded(PROFILE)
    stops.start({"first": lambda _: None, "power": lambda _: None} | dict.fromkeys(BANDS, _sure))
    stops.fleet.admit(photos(4))
    stops.drain()
    assert stops.asked("qwen-32b") == [0, 1, 2, 3]
    assert all(stops.asked(name) == [] for name in BANDS if name != "qwen-32b")


def test_one_band_overloaded_leaves_the_others_alone(banded: Callable[[Profile], Banded]) -> None:
    """Who would climb to the full tier settles by the votes held, flagged; without a vote it climbs all the same."""
    tiers = tuple(
        msgspec.structs.replace(tier, max_waiting=2) if tier.name == "qwen-32b" else tier for tier in PROFILE.tiers
    )
    profile = msgspec.structs.replace(PROFILE, tiers=tiers)
    stops = banded(profile)
    abstains = len(WAYS)
    scores: dict[str, Scores] = dict.fromkeys(BANDS, _sure)
    stops.start({"first": lambda i: None if i == abstains else first(i), "power": lambda _: 0.0} | scores)
    _wait_at(stops.fleet, "qwen-32b", photos(3, source="s-0"))
    stops.fleet.admit(photos(len(WAYS) + 1))
    stops.drain()
    rows = stops.fleet.rows("s-1")
    shed = [i for i in range(len(WAYS)) if way(i) == "qwen-32b"]
    assert shed
    assert {i for i, row in rows.items() if row["reason"] == "overload"} == set(shed)
    assert {rows[i]["tier"] for i in shed} == {"first"}
    assert rows[abstains]["tier"] == "qwen-32b"
    others = {i: way(i) or "first" for i in range(len(WAYS)) if i not in shed}
    assert {i: rows[i]["tier"] for i in others} == others


def _wait_at(fleet: Fleet, tier: str, items: list[Item]) -> None:
    epoch, offset = fleet.ledger.open(items[0].source, "bulk")
    child = item_batch(items, tier, "bulk")
    bounds = {"max_items": 10**6, "max_bytes": 10**9}
    fleet.ledger.admit(items[0].source, epoch, offset, len(items), "bulk", [child], stored=[], **bounds)


PANEL = (Voter("scout-s", 1.0), Voter("scout-m", 2.0))


def _with_first(**changes: Any) -> Profile:
    """Of a panel and one banded tier, with its first tier changed."""
    tiers = (Tier(name="panel", panel=PANEL, accept_above=0.9, accept_below=0.1), Tier(name="last", model="scout-m"))
    return Profile(name="p", tiers=(msgspec.structs.replace(tiers[0], **changes), tiers[1]))


@pytest.mark.parametrize(
    "changed",
    [
        _with_first(agree=0.7),
        _with_first(panel=PANEL[::-1]),
        _with_first(panel=(PANEL[0],)),
        _with_first(panel=(PANEL[0], Voter("scout-m", 1.0))),
        msgspec.structs.replace(_with_first(), consensus=Stack(intercept=0.0, slopes={"scout-s": 1.0})),
        msgspec.structs.replace(
            _with_first(), tiers=(_with_first().tiers[0], Tier(name="last", model="scout-m", band=(0.0, 0.9)))
        ),
    ],
)
def test_what_decides_is_in_the_digest(changed: Profile) -> None:
    """Agreement, a panel's models, order and weights, the stack, a band: another of them is another fleet."""
    assert changed.digest() != _with_first().digest()


def _served_digest(
    monkeypatch: pytest.MonkeyPatch, *, server: Server, away: Literal["abstain", "wait"] = "abstain", **serving: Any
) -> str:
    """Of a fleet whose last tier is a served model."""
    spec = load_model("qwen3-vl-4b-instruct")
    assert spec.serving
    served = msgspec.structs.replace(spec, serving=msgspec.structs.replace(spec.serving, **serving))
    monkeypatch.setattr(configs.profile, "load_model", lambda _: served)
    return Profile(name="p", tiers=(Tier(name="last", model=served.key, server=server, away=away),)).digest()


def test_what_a_model_under_a_press_is_asked_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its questions by their texts, its press and its ratio."""
    spec = load_model("qwen3-vl-4b-kvpress")

    def digest(**options: Any) -> str:
        pressed = msgspec.structs.replace(spec, options=spec.options | options)
        monkeypatch.setattr(configs.profile, "load_model", lambda _: pressed)
        return Profile(name="p", tiers=(Tier(name="last", model=spec.key),)).digest()

    found = {digest(), digest(questions=["Is it?"]), digest(press="none"), digest(compression_ratio=0.25)}
    assert len(found) == 4
    was = digest()
    monkeypatch.setattr(configs.prompt, "load_prompt", str.upper)
    assert digest() != was


def test_what_a_served_model_is_asked_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt, its thoughts, what counts as an answer, the size of the photo; not where and how much is asked."""
    monkeypatch.setattr(configs.profile, "load_prompt", str.upper)
    digest = partial(_served_digest, monkeypatch)
    asked = digest(server=Server())
    changed = [
        digest(server=Server(), prompt="roadwork-2"),
        digest(server=Server(), thinking_tokens=64),
        digest(server=Server(max_outside=0.4)),
        digest(server=Server(sent_px=448)),
        digest(server=Server(), pixels=(65536, 131072)),
        digest(server=Server(), processor={"max_crops": 4}),
        digest(server=Server(), chat_template={"enable_thinking": True}),
        digest(server=Server(), away="wait"),
    ]
    assert len({asked, *changed}) == 9
    assert digest(server=Server(port=9000, in_flight=8, timeout_s=9.0), max_model_len=8192) == asked


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cuda:1"},
        {"precision": "fp16"},
        {"compile": True},
        {"residency": "sleep"},
        {"memory_share": 0.5},
        {"tensor_parallel": 2},
        {"max_waiting": 100},
    ],
)
def test_what_a_host_has_is_not_in_the_digest(changes: dict[str, Any]) -> None:
    """Another card, and how a model lies on it, is the same fleet."""
    assert _with_first(**changes).digest() == _with_first().digest()


@pytest.mark.parametrize("name", ["h100x2", "h100x2-all"])
@pytest.mark.parametrize(
    ("p", "agree", "asked"),
    [(0.02, True, False), (0.98, True, False), (0.02, False, True), (0.04, True, True), (0.5, True, True)],
)
def test_the_shipped_profiles_ask_no_vlm_about_what_is_sure(name: str, p: float, agree: bool, asked: bool) -> None:
    """p = 0.02 of a panel that agrees is a verdict; if one vote in three disagrees, the surest band is asked."""
    profile = load_profile(name)
    panel = profile.tier("panel")
    recorded = [p, p, p] if agree else [p, p, 0.9]
    votes = (
        Vote("classifier", "natix-roadwork-vit@1", p, 1.0, 1.0),
        *(Vote("panel", f"m{i}@1", one, 0.0, 1.0) for i, one in enumerate(recorded)),
    )
    end = decide(msgspec.structs.replace(photos(1)[0], votes=votes), panel, profile.after("panel"), 0)
    assert isinstance(end, str) is asked
    if asked:
        low, high = profile.tier(str(end)).band or (0.0, 0.0)
        assert low <= abs(2 * p - 1) < high
