"""The vLLM engine against the real vLLM: probabilities beside those of transformers, thoughts, refusals, outages."""

import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from configs.errors import ConfigError
from configs.model import load_model
from configs.prompt import load_prompt
from configs.serving import Server, Serving
from tests.vllm.conftest import NAME, ROOT
from tests.vllm.older_release import without
from tests.vllm.real_server import real_server
from workers.answer import Completion
from workers.background import wait_for
from workers.engines import EngineAwayError, Runtime, Shot
from workers.engines.vllm import Engine
from workers.fanout import Fanout
from workers.panel import Member, Panel
from workers.progress import Progress
from workers.question import TOP
from workers.yes_no import Reading, Words

BUDGET = 12


@pytest.fixture(scope="module")
def thinking(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint whose turns begin with a thought."""
    folder = tmp_path_factory.mktemp("thinking") / NAME
    command = [python, str(ROOT / "tests/vllm/tiny_checkpoint.py"), str(folder), "thinking"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def thinker(python: str, thinking: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its server: in fp32, with a parser of thoughts, and log-probabilities taken after others were ruled out."""
    arguments = ["--dtype", "float32", "--reasoning-parser", "qwen3", "--logprobs-mode", "processed_logprobs"]
    with real_server(python, thinking, NAME, tmp_path_factory.mktemp("vllm") / "log", arguments=arguments) as url:
        yield url


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """Pairwise distinct: coloured fields of several sizes, as JPEG."""
    dice = np.random.default_rng(5)
    found = []
    for i in range(8):
        fields = Image.fromarray(dice.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        fields.resize((96 + 32 * (i % 3), 128), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def engine(url: str, thinking_tokens: int = 0, *, waits: bool = False, **server: float) -> Engine:
    """Loaded; as said, with nothing outside yes and no too much."""
    spec = replace(load_model(NAME), serving=Serving(thinking_tokens=thinking_tokens))
    # The first question of all has the server compile, where nothing of that is kept on the machine yet.
    bounds = {"max_outside": 1.0, "start_within_s": 60.0, "timeout_s": 60.0, **server}
    built = Engine(spec, Runtime(url=url, server=Server(**bounds), waits=waits))  # type: ignore[arg-type]
    built.load()
    return built


def readings(asked: Engine, photos: list[bytes]) -> list[Reading]:
    """Of each photo, one after another."""
    found = [wait_for(asked.reading(asked.prepare_stored(photo, Shot()))) for photo in photos]
    assert None not in found
    return [one for one in found if one]


def test_probabilities_are_those_of_transformers(
    python: str, thinker: str, thinking: Path, photos: list[bytes], tmp_path: Path
) -> None:
    """The same checkpoint, photos and prompt in fp32: score and what is outside agree to 1e-3; photos differ."""
    paths = [tmp_path / f"{i}.jpg" for i in range(len(photos))]
    for path, photo in zip(paths, photos, strict=True):
        path.write_bytes(photo)
    command = [
        python,
        str(ROOT / "tests/vllm/reference.py"),
        str(thinking),
        load_prompt("roadwork-1"),
        *map(str, paths),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    wanted = [json.loads(line) for line in done.stdout.splitlines()]
    asked = engine(thinker)
    assert asked.asking.wording.way == "chosen"
    said = readings(asked, photos)
    assert [one.score for one in said] == pytest.approx([one["score"] for one in wanted], abs=1e-3)
    assert [one.outside for one in said] == pytest.approx([one["outside"] for one in wanted], abs=1e-3)
    assert np.std([one.score for one in said]) > 1e-2


def test_every_way_says_the_same(thinker: str, vlm_url: str, photos: list[bytes]) -> None:
    """A release without the field is asked otherwise, as its server shows; the score is that of the newest way."""
    wanted = readings(engine(thinker), photos)
    with without(thinker, "logprob_token_ids") as older:
        biased = engine(older)
        assert biased.asking.wording.way == "biased"
        said = readings(biased, photos)
        assert [one.score for one in said] == pytest.approx([one.score for one in wanted], abs=1e-3)
        # What the likeliest of the others have, as many as the list has room for beside the words.
        words = biased.asking.wording.words
        likely = replace(biased.asking.wording, way="top").at_once()
        for photo, one, whole in zip(photos, said, wanted, strict=True):
            (place,) = wait_for(biased._choice(likely, asked_of(biased, photo))).places
            rest = sorted((p for i, p in place.logprobs().items() if i not in words.all), reverse=True)
            likeliest = sum(map(math.exp, rest[: TOP - len(words.all)]))
            assert whole.outside is not None
            assert one.outside is not None
            assert one.outside == pytest.approx(likeliest / (likeliest + 1 - whole.outside), abs=1e-3)
            assert one.outside > 1e-2
    with without(thinker, "logprob_token_ids", "logit_bias") as older:
        allowed = engine(older)
        assert allowed.asking.wording.way == "allowed"
        said = readings(allowed, photos)
        assert [one.score for one in said] == pytest.approx([one.score for one in wanted], abs=1e-3)
        assert {one.outside for one in said} == {None}
    # This server takes log-probabilities before anything is ruled out.
    newest = engine(vlm_url)
    assert newest.asking.wording.way == "chosen"
    with without(vlm_url, "logprob_token_ids") as older:
        top = engine(older)
        assert top.asking.wording.way == "top"
        for photo in photos:
            body = asked_of(top, photo)
            (place,) = wait_for(top._choice(top.asking.wording.at_once(), body)).places
            (guess,), (exact,) = readings(top, [photo]), readings(newest, [photo])
            low, high = bounds(place.logprobs(), top.asking.wording.words)
            assert low - 0.05 <= guess.score <= high + 0.05
            assert low - 0.05 <= exact.score <= high + 0.05


def bounds(found: dict[int, float], words: Words) -> tuple[float, float]:
    """Between them is the score: a word that is not among the most likely is no likelier than the last of them."""
    least = math.exp(min(found.values()))
    sums = []
    for ids in (words.yes, words.no):
        there = sum(math.exp(found[i]) for i in ids if i in found)
        sums.append((max(there, 1e-9), there + least * len([i for i in ids if i not in found])))
    (yes_low, yes_high), (no_low, no_high) = sums
    return math.log(yes_low / no_high), math.log(yes_high / no_low)


def asked_of(asked: Engine, photo: bytes) -> bytes:
    """A photo as it travels."""
    return asked.prepare_stored(photo, Shot())


def test_thoughts_are_cut_at_their_budget(thinker: str, photos: list[bytes]) -> None:
    """In one question: at most so many tokens of thought, their end, and an answer that is read behind it."""
    asked = engine(thinker, BUDGET)
    end = asked.asking.end_of_thoughts
    assert end >= 0
    question = asked.asking.wording.after_thoughts(BUDGET, 16)
    for photo in photos[:3]:
        body = question.about(asked.prepare_stored(photo, Shot()))
        (choice,) = wait_for(asked._served.request("POST", "/v1/chat/completions", Completion, body)).choices
        tokens = [place.number for place in choice.places]
        assert 1 <= tokens.index(end) <= BUDGET + 1
        behind = choice.places[tokens.index(end) + 1]
        (said,) = readings(asked, [photo])
        yes = [behind.logprobs()[i] for i in asked.asking.wording.words.yes]
        no = [behind.logprobs()[i] for i in asked.asking.wording.words.no]
        assert said.score == pytest.approx(math.log(sum(map(math.exp, yes)) / sum(map(math.exp, no))), abs=1e-2)


def test_thoughts_are_asked_for_first_where_the_server_keeps_no_budget(
    thinker: str, vlm_url: str, photos: list[bytes]
) -> None:
    """Two questions: thoughts, then one token behind them. Without a parser, and with a release that has no budget."""
    no_parser = engine(vlm_url, BUDGET)
    assert no_parser.asking.end_of_thoughts == -1
    assert len({one.score for one in readings(no_parser, photos)}) > len(photos) / 2
    with without(thinker, "thinking_token_budget") as older:
        asked = engine(older, BUDGET)
        assert asked.asking.end_of_thoughts == -1
        first, *_ = readings(asked, photos[:1])
        # What stands before the answer is what was said to stand there: other thoughts, another answer.
        photo = asked.prepare_stored(photos[0], Shot())
        thought = wait_for(asked._choice(asked.asking.wording.think(BUDGET, "</think>"), photo))
        assert thought.message.text.strip()
        body = asked.asking.wording.conclude(f"<think>\n{thought.message.text.strip()}\n</think>\n\n").about(photo)
        other = asked.asking.wording.conclude("<think>\ncone cone cone\n</think>\n\n").about(photo)
        same, another = (
            wait_for(asked._served.request("POST", "/v1/chat/completions", Completion, one)).choices[0].places[0]
            for one in (body, other)
        )
        words = asked.asking.wording.words
        assert same.logprobs()[min(words.yes)] != another.logprobs()[min(words.yes)]
        assert math.isfinite(first.score)


def test_what_the_model_would_rather_say_is_no_vote(vlm_url: str, photos: list[bytes]) -> None:
    """Above the bound of what is outside yes and no it abstains, and that is counted."""
    asked = engine(vlm_url)
    prepared = [asked.prepare_stored(photo, Shot()) for photo in photos]
    outside = [wait_for(asked.reading(photo)) for photo in prepared]
    bound = float(np.median([one.outside for one in outside if one and one.outside is not None]))
    strict = engine(vlm_url, max_outside=bound)
    scores = strict.score(prepared)
    assert [score is None for score in scores] == [bool(one and one.outside and one.outside > bound) for one in outside]
    assert None in scores
    counts = strict.take_counts()
    assert counts["no_vote_outside"] == scores.count(None)
    wanted = sum(one.outside for one in outside if one and one.outside)
    assert counts["outside_ppm"] / 1e6 == pytest.approx(wanted, abs=1e-2)
    assert strict.take_counts() == {}


def test_a_photo_that_the_server_refuses_abstains_alone(vlm_url: str, photos: list[bytes]) -> None:
    """One that it cannot read has no vote, without a retry; its neighbours have theirs."""
    asked = engine(vlm_url)
    cut = asked.prepare_stored(photos[0][: len(photos[0]) * 9 // 10], Shot())
    whole = asked.prepare_stored(photos[1], Shot())
    start_s = time.monotonic()
    scores = asked.score([whole, cut, whole])
    assert scores[1] is None
    assert scores[0] == pytest.approx(scores[2], abs=1e-3)
    assert asked.take_counts()["no_vote_refused"] == 1
    assert time.monotonic() - start_s < 5
    assert asked._served.breaker.state == "closed"


def test_a_photo_is_shrunk_only_if_it_must_be(vlm_url: str) -> None:
    """A large one is sent at ``sent_px``, a small one as it is stored."""
    import base64

    asked = engine(vlm_url, sent_px=128)
    buffer = io.BytesIO()
    Image.effect_noise((512, 300), 60).convert("RGB").save(buffer, "JPEG")
    sent = Image.open(io.BytesIO(base64.b64decode(asked.prepare_stored(buffer.getvalue(), Shot()))))
    assert sent.size == (128, 75)
    small = io.BytesIO()
    Image.new("RGB", (128, 100)).save(small, "JPEG")
    assert base64.b64decode(asked.prepare_stored(small.getvalue(), Shot())) == small.getvalue()


def test_another_model_is_served(vlm_url: str) -> None:
    """Said at once, with what is there."""
    spec = replace(load_model("molmo2-4b"), serving=Serving())
    with pytest.raises(ConfigError, match=f"serves {NAME}"):
        Engine(spec, Runtime(url=vlm_url, server=Server(start_within_s=5))).load()


def test_a_server_that_goes_away(vlm_url: str, photos: list[bytes]) -> None:
    """Where the tier abstains there is no vote, soon at once; where it waits, the items come again."""
    with ExitStack() as stack:
        proxy = stack.enter_context(without(vlm_url))
        abstains, waits = engine(proxy), engine(proxy, waits=True)
        photo = abstains.prepare_stored(photos[0], Shot())
        assert abstains.score([photo] * 4).count(None) == 0
    start_s = time.monotonic()
    assert abstains.score([photo] * 64) == [None] * 64
    assert time.monotonic() - start_s < 3
    assert abstains.take_counts()["no_vote_away"] == 64
    start_s = time.monotonic()
    assert abstains.score([photo] * 64) == [None] * 64
    assert time.monotonic() - start_s < 0.5
    with pytest.raises(EngineAwayError):
        waits.score([photo])


def test_the_fan_out_keeps_the_real_server_busy(vlm_url: str, photos: list[bytes]) -> None:
    """Four threads, 200 questions, 16 in flight: each answer is that of its photo, whatever runs beside it."""
    from concurrent.futures import ThreadPoolExecutor

    asked = engine(vlm_url, in_flight=16)
    panel = Panel("vlm", [Member(load_model(NAME), asked)])
    alone = {photo: readings(asked, [photo])[0].score for photo in photos}
    fan = Fanout(panel, 16, Progress())
    cpu_s, start_s = time.process_time(), time.monotonic()

    def claim(i: int) -> None:
        mine = [photos[(i + j) % len(photos)] for j in range(50)]
        outcomes, _ = fan.score([panel.prepare_stored(photo, Shot()) for photo in mine], "bulk")
        scores = [outcome[0] for outcome in outcomes if isinstance(outcome, tuple)]
        assert scores == pytest.approx([alone[photo] for photo in mine], abs=0.1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(claim, range(4)))
    cpu_ms = 1000 * (time.process_time() - cpu_s) / 200
    rate = 200 / (time.monotonic() - start_s)
    sys.stdout.write(f"{rate:.0f} questions/s, {cpu_ms:.2f} ms of the client's CPU each\n")
    assert cpu_ms < 10
    fan.stop()
