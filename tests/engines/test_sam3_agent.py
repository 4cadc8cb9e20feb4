"""The SAM 3 agent: what it decides, and the whole loop with a real served vision-language model of a few layers."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import workers.served
from configs.errors import ConfigError
from tests.engines.checkpoints import STILL, Shelf, engine_of, photos, scores_of
from tests.engines.contract import holds
from tests.engines.tiny_sam3 import PROMPTS, SMALL, sam3
from tests.engines.tiny_vlm import teach, tiny_vlm
from tests.engines.vlm_server import served
from tests.rude_server import Reply, rude, said
from workers.engines import Engine, EngineAwayError, Runtime
from workers.engines.agent_dialogue import Box, confirm_question, name_question, numbered
from workers.engines.sam3 import Sight
from workers.engines.sam3_agent import DOUBT, Case
from workers.served import URL_VARIABLE

GREY = Image.new("RGB", (64, 64))


def sight(presence: float, *scores: float) -> Sight:
    """Boxes in a row."""
    boxes = np.array([(0.1 * i, 0.0, 0.1 * i + 0.1, 1.0) for i in range(len(scores))], np.float32)
    return Sight(presence, boxes.reshape(-1, 4), np.array(scores, np.float32))


def logit(p: float) -> float:
    """Log-odds."""
    return math.log(p / (1 - p))


def test_confirmed_phrases_count_and_no_others() -> None:
    """Noisy-or of the presences of confirmed phrases; a row's prompt with its weight; the refuted do not count."""
    case = Case(GREY)
    case.hear_names(["traffic cone", "excavator", "car"], [])
    case.sights = {"traffic cone": sight(0.5, 0.4), "excavator": sight(0.6, 0.5), "car": sight(0.9, 0.9)}
    boxes = case.boxes()
    assert [box.phrase for box in boxes] == ["car", "excavator", "traffic cone"]
    case.hear_numbers(boxes, {2, 3})
    assert case.closed
    assert case.score({"excavator": 0.5}) == pytest.approx(logit(1 - (1 - 0.5) * (1 - 0.5 * 0.6)), abs=1e-4)


def test_what_nobody_confirmed_counts_a_little() -> None:
    """With nothing confirmed the photo stays open for another round, and its score is a doubt of all presences."""
    case = Case(GREY)
    case.hear_names(["traffic cone", "excavator"], [])
    case.sights = {"traffic cone": sight(0.5, 0.4), "excavator": sight(0.6)}
    case.hear_numbers(case.boxes(), set())
    assert not case.closed
    assert case.score({}) == pytest.approx(logit(1 - (1 - DOUBT * 0.5) * (1 - DOUBT * 0.6)), abs=1e-4)


def test_none_named_looks_for_the_rows_prompts_once() -> None:
    """An empty first answer does not end it: small things are overlooked. An empty later one does."""
    case = Case(GREY)
    case.hear_names([], ["traffic cone", "barrier"])
    assert (case.wanted, case.closed) == (["traffic cone", "barrier"], False)
    case.sights = {"traffic cone": sight(0.1), "barrier": sight(0.1)}
    case.hear_names([], ["traffic cone", "barrier"])
    assert (case.wanted, case.closed) == ([], True)


def test_a_phrase_is_looked_for_once() -> None:
    """Named again, it is left out; nothing new closes the photo."""
    case = Case(GREY)
    case.sights = {"traffic cone": sight(0.1)}
    case.hear_names(["traffic cone", "barrier"], [])
    assert (case.wanted, case.closed) == (["barrier"], False)
    case.hear_names(["traffic cone"], [])
    assert case.closed


@pytest.mark.parametrize("hear", [lambda c: c.hear_names(None, ["cone"]), lambda c: c.hear_numbers([], None)])
def test_not_understood_abstains(hear: Callable[[Case], None]) -> None:
    """An answer that cannot be read, twice, is no vote: neither 0.5 nor no."""
    case = Case(GREY)
    case.sights = {"traffic cone": sight(0.9, 0.9)}
    hear(case)
    assert case.closed
    assert case.score({}) is None


# The loop, with real models.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three checkpoints by folder: one babbles, one has learned to name and confirm, one to deny."""
    lessons: dict[str, list[tuple[Image.Image, str, str]]] = {"babbling": [], "taught": [], "denying": []}
    dice = np.random.default_rng(0)
    for photo in photos(16, seed=1):
        corners = np.sort(dice.random((10, 2, 2)), axis=1).reshape(10, 4).tolist()
        cones = [Box("traffic cone", tuple(box), 0.9) for box in corners]
        others = [Box(str(dice.choice(list(PROMPTS))), tuple(box), 0.9) for box in corners]
        lessons["taught"] += [
            (photo, name_question(8, []), '["traffic cone"]'),
            (numbered(photo, cones), confirm_question(cones), "[1]"),
        ]
        lessons["denying"] += [
            (photo, name_question(8, []), "[]"),
            (numbered(photo, others), confirm_question(others), "[]"),
            (photo, name_question(8, list(PROMPTS)), "[]"),
        ]
    folders = {}
    for key, course in lessons.items():
        model, processor = tiny_vlm()
        teach(model, processor, course, steps=64 if course else 0)
        folder = tmp_path_factory.mktemp(key)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        folders[key] = str(folder)
    return folders


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server has them all."""
    with served(tmp_path_factory.mktemp("server") / "home") as url:
        yield url


@pytest.fixture
def weights(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small SAM 3 under both keys; retries without long pauses."""
    monkeypatch.setattr(workers.served, "RETRY_BASE_S", 0.01)
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    shelf.put("sam3", *sam3())
    return shelf.put("sam3-agent", *sam3())


def agent(url: str, served_model: str = "vlm", **options: Any) -> Engine:
    """The engine of the row, for a small SAM 3 and a model of that server."""
    said = {"url": url, "served_model": served_model, "timeout_s": 60.0, "max_tokens": 24, **options}
    return engine_of("sam3-agent", **{**SMALL, "options": said})


@pytest.mark.usefixtures("weights")
def test_a_photo_is_named_found_and_confirmed(server: str, models: dict[str, str]) -> None:
    """A model that names cones and confirms the first box: the score is SAM 3's own presence of a cone."""
    scores = holds(agent(server, models["taught"]), photos(2))
    assert scores == pytest.approx(
        scores_of(engine_of("sam3", **{**SMALL, "prompts": {"traffic cone": 1.0}}), photos(2))
    )
    assert len(set(scores)) == 2


@pytest.mark.usefixtures("weights")
def test_a_photo_of_which_nothing_is_confirmed(server: str, models: dict[str, str]) -> None:
    """A model that sees none: the row's prompts were looked for, and count a little."""
    doubted = {phrase: DOUBT * weight for phrase, weight in PROMPTS.items()}
    scores = scores_of(agent(server, models["denying"]), photos(3))
    assert scores == pytest.approx(scores_of(engine_of("sam3", **{**SMALL, "prompts": doubted}), photos(3)))


@pytest.mark.usefixtures("weights")
def test_a_model_that_babbles_has_no_vote(server: str, models: dict[str, str]) -> None:
    """Random weights answer, twice, what is no list: the agent abstains for every photo."""
    assert scores_of(agent(server, models["babbling"]), photos(3)) == [None, None, None]


@pytest.mark.usefixtures("weights")
def test_a_server_that_is_away() -> None:
    """The worker starts without it, and its items wait: no photo is suspected."""
    with rude(Reply(503, b"loading", {"connection": "close"})) as busy:
        engine = agent(busy.url)
        with pytest.raises(EngineAwayError, match="says 503: loading"):
            scores_of(engine, photos(3))
    # After so many failures it is not asked at once, so that what it said last stands.
    with pytest.raises(EngineAwayError, match=r"refused|is away"):
        scores_of(engine, photos(3))


@pytest.mark.usefixtures("weights")
def test_photos_are_asked_about_together() -> None:
    """Eight slow round trips, twice, take the time of two and not of sixteen."""
    with rude(Reply(body=b'{"data": []}'), Reply(body=said("?").body, after_s=0.3)) as slow:
        engine = engine_of(
            "sam3-agent", Runtime(max_batch=8), **{**SMALL, "options": {"url": slow.url, "served_model": "vlm"}}
        )
        prepared = [engine.prepare(photo, STILL) for photo in photos(8)]
        start_s = time.monotonic()
        assert engine.score(prepared) == [None] * 8
        assert time.monotonic() - start_s < 2.4
    assert len(slow.asked) == 1 + 16


@pytest.mark.usefixtures("weights")
def test_mistakes_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each, before the first photo: no server, another model, an unknown option, no prompts."""
    with rude(Reply(body=b'{"data": [{"id": "a"}, {"id": "b"}]}')) as other:
        with pytest.raises(ConfigError, match="serves a, b, not 'vlm'"):
            agent(other.url)
        with pytest.raises(ConfigError, match="unknown field `round`"):
            agent(other.url, round=3)
        with pytest.raises(ConfigError, match="no prompts"):
            engine_of("sam3-agent", **{**SMALL, "prompts": {}, "options": {"served_model": "a"}})
    with pytest.raises(ConfigError, match=URL_VARIABLE):
        agent("")
    monkeypatch.setenv(URL_VARIABLE, "host:8000")
    with pytest.raises(ConfigError, match="'host:8000' is no URL"):
        agent("")
