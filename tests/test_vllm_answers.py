"""What a served model is sent, and how its answer is read, without a server: by hand, at the edges, and in general."""

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.prompt import PROMPTS, load_prompt
from workers.answer import Candidate, Completion, Place, answer_place
from workers.question import TOP, Wording
from workers.yes_no import BIAS, SCORE_MAX, Way, Words, read, works

WORDS = Words(frozenset({1, 2}), frozenset({5}))
#: Probabilities of tokens 1 and 2 (yes), 5 (no); a tenth is neither.
SOME = {1: math.log(0.4), 2: math.log(0.2), 5: math.log(0.3)}


def test_probability_by_hand() -> None:
    """(0.4 + 0.2) / 0.3 is 2 to 1; a tenth is outside."""
    said = read(SOME | {9: math.log(0.05)}, WORDS, "chosen")
    assert said is not None
    assert said.score == pytest.approx(math.log(2))
    assert said.outside == pytest.approx(0.1)


def test_what_was_ruled_out_is_not_known() -> None:
    """Among allowed tokens alone there is no outside."""
    said = read({1: math.log(0.5), 2: math.log(0.25), 5: math.log(0.25)}, WORDS, "allowed")
    assert said is not None
    assert said.score == pytest.approx(math.log(3))
    assert said.outside is None


def biased(probabilities: dict[int, float]) -> dict[int, float]:
    """Log-probabilities of tokens as a server says them that added BIAS to the words' logits first."""
    lifted = {i: math.log(p) + (BIAS if i in WORDS.all else 0) for i, p in probabilities.items()}
    top = max(lifted.values())
    whole = top + math.log(sum(math.exp(one - top) for one in lifted.values()))
    return {i: one - whole for i, one in lifted.items()}


def test_what_was_put_down_is_still_known() -> None:
    """A bias leaves the words' odds as they are; less that bias, the others in the list are what is outside."""
    for rest in (0.05, 0.6):
        inside = 1 - rest
        said = read(biased({1: 0.5 * inside, 2: 0.25 * inside, 5: 0.25 * inside, 8: rest}), WORDS, "biased")
        assert said is not None
        assert said.score == pytest.approx(math.log(3))
        assert said.outside == pytest.approx(rest)
    alone = read(biased({1: 0.5, 2: 0.25, 5: 0.25}), WORDS, "biased")
    assert alone is not None
    assert alone.outside == 0


@pytest.mark.parametrize("way", ["chosen", "biased", "allowed"])
def test_an_answer_without_a_wanted_token_is_not_read(way: Way) -> None:
    """A part of the sum would be taken for the whole."""
    assert read({1: -0.1, 5: -3.0}, WORDS, way) is None


def test_among_the_most_likely_a_word_that_is_missing_counts_as_the_last_of_them() -> None:
    """It is no likelier than that; with neither word there is nothing to read."""
    said = read({1: math.log(0.8), 9: math.log(0.1), 8: math.log(0.01)}, WORDS, "top")
    assert said is not None
    assert (said.score, said.outside) == pytest.approx((math.log(80), 0.2))
    assert read({9: math.log(0.9), 8: math.log(0.1)}, WORDS, "top") is None


@given(
    st.lists(st.floats(-9999, 0), min_size=4, max_size=4),
    st.sampled_from(["chosen", "biased", "allowed", "top"]),
)
def test_any_log_probabilities_give_a_score_within_bounds(found: list[float], way: Way) -> None:
    """Whatever underflows: finite, within bounds, turned round when yes and no are; outside is a probability."""
    logprobs = dict(zip((1, 2, 5, 9), found, strict=True))
    said = read(logprobs, WORDS, way)
    other = read(logprobs, Words(WORDS.no, WORDS.yes), way)
    assert said is not None
    assert other is not None
    assert -SCORE_MAX <= said.score <= SCORE_MAX
    assert other.score == pytest.approx(-said.score)
    assert said.outside is None or 0 <= said.outside <= 1


def test_which_first_answers_show_that_a_way_works() -> None:
    """Each of them from a server that does otherwise than it was asked."""
    assert works(SOME, WORDS, "chosen")
    # Not ruled out: the list was made before that.
    assert not works(SOME, WORDS, "allowed")
    assert works({1: math.log(0.5), 2: math.log(0.3), 5: math.log(0.2)}, WORDS, "allowed")
    assert works(biased({1: 0.2, 2: 0.1, 5: 0.1, 8: 0.6}), WORDS, "biased")
    # Nothing was added to them, however sure the model is of its word.
    assert not works({1: math.log(0.995), 2: -9.0, 5: -6.0, 8: -8.0}, WORDS, "biased")
    # Its list is of the words alone, whoever made it so: what is outside would seem to be nothing.
    assert not works(biased({1: 0.5, 2: 0.25, 5: 0.25}), WORDS, "biased")
    # The field was ignored.
    assert not works({9: -0.1}, WORDS, "chosen")
    # Logits.
    assert not works({1: 3.0, 2: 1.0, 5: -2.0}, WORDS, "chosen")
    assert not works({1: -0.1, 2: -0.1, 5: -0.1}, WORDS, "chosen")
    # A babbler's most likely tokens hold no word, and could.
    assert works({8: -1.0, 9: -2.0}, WORDS, "top")
    assert not works({8: 4.0, 9: 1.0}, WORDS, "top")


def place(number: int, text: str = "x") -> Place:
    """One token of a reply."""
    return Place(f"token_id:{number}", -0.1, list(text.encode()), [Candidate(f"token_id:{number}", -0.1)])


def test_where_the_answer_stands() -> None:
    """After the thoughts' end and the line breaks behind it; a reply whose thoughts do not end has none."""
    thoughts = [place(7), place(8), place(3, "</think>")]
    assert answer_place([*thoughts, place(4, "\n\n"), place(1, "Yes"), place(9)], 3) == place(1, "Yes")
    assert answer_place([*thoughts, place(4, "\n\n")], 3) is None
    assert answer_place(thoughts, 99) is None
    assert answer_place([place(4, "\n"), place(5, "No")]) == place(5, "No")
    assert answer_place([]) is None


def test_a_reply_is_read_as_it_comes() -> None:
    """Unknown fields do no harm; tokens named otherwise than by number are no tokens of ours."""
    body = {
        "id": "x",
        "choices": [
            {
                "message": {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": []},
                "logprobs": {
                    "content": [
                        {
                            "token": "token_id:5",
                            "logprob": -0.5,
                            "bytes": [78, 111],
                            "top_logprobs": [
                                {"token": "token_id:5", "logprob": -0.5, "bytes": []},
                                {"token": "No", "logprob": -0.5},
                            ],
                        }
                    ]
                },
                "finish_reason": "length",
            }
        ],
    }
    import msgspec

    (choice,) = msgspec.json.decode(json.dumps(body).encode(), type=Completion).choices
    assert choice.message.text == "Hm."
    assert (choice.places[0].number, choice.places[0].blank, choice.places[0].logprobs()) == (5, False, {5: -0.5})
    assert Completion([]).choices == []


@pytest.mark.parametrize("way", ["chosen", "biased", "allowed", "top"])
def test_what_travels(way: Way) -> None:
    """The photo first, then the prompt, at temperature 0; the tokens by number, in the fields of that way only."""
    photo = base64.b64encode(b"\xff\xd8 a photo")
    wording = Wording("vlm", 'Is it "roadwork"?', WORDS, way)
    body = json.loads(wording.at_once().about(photo))
    (turn,) = body["messages"]
    assert turn["content"][0]["image_url"]["url"] == "data:image/jpeg;base64," + photo.decode()
    assert turn["content"][1]["text"] == 'Is it "roadwork"?'
    assert (body["model"], body["max_tokens"], body["temperature"], body["logprobs"]) == ("vlm", 1, 0.0, True)
    names = ("logprob_token_ids", "logit_bias", "allowed_token_ids", "top_logprobs")
    assert {name: body[name] for name in names if name in body} == {
        "chosen": {"logprob_token_ids": [1, 2, 5]},
        "biased": {"logit_bias": {"1": BIAS, "2": BIAS, "5": BIAS}, "top_logprobs": TOP},
        "allowed": {"allowed_token_ids": [1, 2, 5], "top_logprobs": 3},
        "top": {"top_logprobs": TOP},
    }[way]


def test_what_the_template_is_told_travels() -> None:
    """With every question, since a server of somebody else's was not told at its start."""
    assert "chat_template_kwargs" not in json.loads(Wording("vlm", "Roadwork?", WORDS, "top").at_once().about(b""))
    wording = Wording("vlm", "Roadwork?", WORDS, "top", {"enable_thinking": False})
    for question in (wording.at_once(), wording.conclude("Hm.")):
        assert json.loads(question.about(b""))["chat_template_kwargs"] == {"enable_thinking": False}


def test_thoughts_travel_back() -> None:
    """The second question goes on from the model's own words; the first has no log-probabilities to carry."""
    wording = Wording("vlm", "Roadwork?", WORDS, "chosen")
    first = json.loads(wording.think(64, "</think>").about(b""))
    assert (first["max_tokens"], first["stop"]) == (64, ["</think>"])
    assert "logprobs" not in first
    second = json.loads(wording.conclude("<think>\nCones.\n</think>\n\n").about(b""))
    assert second["messages"][1] == {"role": "assistant", "content": "<think>\nCones.\n</think>\n\n"}
    assert (second["add_generation_prompt"], second["continue_final_message"]) == (False, True)
    budget = json.loads(wording.after_thoughts(64, 16).about(b""))
    assert (budget["thinking_token_budget"], budget["max_tokens"]) == (64, 80)


def test_every_prompt_is_known_by_what_it_says() -> None:
    """A prompt that was used is not changed: a better one is a new file. Add its line here."""
    import hashlib

    known = {"roadwork-1": "446328198b6391d8"}
    found = {p.stem: hashlib.sha256(load_prompt(p.stem).encode()).hexdigest()[:16] for p in PROMPTS.glob("*.txt")}
    assert found == known


def test_a_prompt_that_is_missing() -> None:
    """One line that names those that are there."""
    with pytest.raises(ConfigError, match=r"'roadwork-0' cannot be read: .*roadwork-1"):
        load_prompt("roadwork-0")
