"""What the SAM 3 agent asks, shows and understands."""

import numpy as np
import pytest
from PIL import Image

from workers.engines.agent_dialogue import (
    COLOURS,
    Box,
    confirm_question,
    name_question,
    numbered,
    numbers_in,
    phrases_in,
)

BOXES = [Box("traffic cone", (0.1, 0.1, 0.4, 0.5), 0.9), Box("excavator", (0.5, 0.5, 1.0, 1.0), 0.4)]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ('["traffic cone", "road worker"]', ["traffic cone", "road worker"]),
        (" [] \n", []),
        ('```json\n["cone"]\n```', ["cone"]),
        ('```\n["cone"]```', ["cone"]),
        ('<think>A "cone"? ["yes"]</think>\n["cone"]', ["cone"]),
        ('no opening tag</think>["cone"]', ["cone"]),
        ('["Cone", "cone ", "hi-vis vest"]', ["cone", "hi-vis vest"]),
        ('["one thing", "two", "three", "four"]', ["one thing", "two", "three"]),
    ],
)
def test_phrases(text: str, phrases: list[str]) -> None:
    """A JSON list of noun phrases, bare, in a block, or after thinking; each once, the first three."""
    assert phrases_in(text, 3) == phrases


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "I see a traffic cone.",
        'Here it is: ["cone"]',
        '["cone"',
        '["cone"] ["sign"]',
        '{"phrases": ["cone"]}',
        '["cone", 3]',
        "[1, 2]",
        '[""]',
        '["a very long noun phrase indeed it is"]',
        '["one two three four five six"]',
        '["cone; drop table"]',
        '["锥"]',
        '<think>["cone"]',
        "tttttttt",
    ],
)
def test_no_phrases(text: str) -> None:
    """Anything else is not guessed at."""
    assert phrases_in(text, 3) is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("[1, 2]", {1, 2}),
        ("[2, 2]", {2}),
        ("[]", set()),
        ("```json\n[1]\n```", {1}),
        ("<think>[3]</think>[2]", {2}),
        ("[0]", None),
        ("[3]", None),
        ("[1, 3]", None),
        ("[true]", None),
        ('["1"]', None),
        ("1", None),
        ("Box 1", None),
    ],
)
def test_numbers(text: str, numbers: set[int] | None) -> None:
    """Numbers of boxes that were shown, and no others."""
    assert numbers_in(text, 2) == numbers


def test_questions_say_what_was_found_and_tried() -> None:
    """Each number with its phrase; a bound; what is not to be named again."""
    assert "1 for 'traffic cone', 2 for 'excavator'" in confirm_question(BOXES)
    assert "at most 5 " in name_question(5, [])
    assert "already" not in name_question(5, [])
    assert "already and are not it: traffic cone, excavator." in name_question(5, ["traffic cone", "excavator"])


def test_boxes_are_drawn_where_they_are() -> None:
    """In a colour of their own along the edges, on a copy; nothing is drawn outside them."""
    photo = Image.new("RGB", (400, 200), (127, 127, 127))
    drawn = numbered(photo, BOXES)
    assert np.all(np.asarray(photo) == 127)
    pixels = np.asarray(drawn)
    assert tuple(pixels[60, 40]) == COLOURS[0]
    assert tuple(pixels[99, 100]) == COLOURS[0]
    assert tuple(pixels[150, 200]) == COLOURS[1]
    changed = np.any(pixels != 127, axis=-1)
    assert not changed[:18].any()
    assert not changed[:, :38].any()
    assert not changed[60:90, 60:150].any()


def test_a_box_at_the_edge_keeps_its_number() -> None:
    """A number is written within the photo even where its box has no room."""
    photo = Image.new("RGB", (100, 60))
    drawn = np.asarray(numbered(photo, [Box("cone", (1.0, 1.0, 1.0, 1.0), 0.5)]))
    assert (np.all(drawn == COLOURS[0], axis=-1)).sum() > 20
