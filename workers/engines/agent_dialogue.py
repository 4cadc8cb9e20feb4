"""What the SAM 3 agent asks a vision-language model, what it shows it, and how it reads the answers. Pure."""

import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct
from PIL import Image, ImageDraw

T = TypeVar("T")

#: One to five words. A byte-pair tokenizer makes at most one token of a letter: 30 always fit SAM 3's 32.
PHRASE = re.compile(r"(?=.{2,30}$)[a-z]+(?:[ -][a-z]+){0,4}")

#: A list, bare or as a block of code; what a model thought aloud before it is dropped.
_BLOCK = re.compile(r"```(?:json)?\s*(\[.*\])\s*```", re.DOTALL)

AGAIN = "That is not the list I asked for. Answer with the JSON list only, and no other word."

#: Easily told apart. Source: M. Okabe and K. Ito, Color Universal Design, 2008; without black and dark blue.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))


class Box(Struct, frozen=True):
    """One find of SAM 3."""

    phrase: str
    #: Left, top, right, bottom in shares of the photo.
    corners: tuple[float, ...]
    #: 0 to 1.
    score: float


def name_question(most: int, tried: Sequence[str]) -> str:
    """Asks what roadwork is in the photo.

    Args:
        most: phrases at most.
        tried: phrases of earlier rounds of which nothing was confirmed.
    """
    again = f" These were looked for already and are not it: {', '.join(tried)}." if tried else ""
    return (
        "This is a photo of a street. Which objects in it belong to roadwork: things that people set up, wear or drive "
        f"while they build or repair a road or close a part of it?{again} Answer with a JSON list of at most {most} "
        'short English noun phrases in lower case, each for one kind of object, like ["traffic cone", "excavator"]. '
        "Answer [] if there is none."
    )


def confirm_question(boxes: Sequence[Box]) -> str:
    """Asks which of the numbered boxes are roadwork."""
    finds = ", ".join(f"{number} for {box.phrase!r}" for number, box in enumerate(boxes, 1))
    return (
        "The numbered boxes in this photo were drawn by a program that can be wrong. Each marks what it took for "
        f"something: {finds}. Which boxes hold an object that is really there and belongs to roadwork at this place, "
        "now? Answer with a JSON list of their numbers, like [1, 3]. Answer [] if there is none."
    )


def phrases_in(text: str, most: int) -> list[str] | None:
    """The noun phrases of an answer, each once, the first ``most`` of them; None: it is no list of noun phrases."""
    found = _list_in(text, list[str])
    if found is None:
        return None
    phrases = list(dict.fromkeys(phrase.strip().lower() for phrase in found))
    if not all(PHRASE.fullmatch(phrase) for phrase in phrases):
        return None
    return phrases[:most]


def numbers_in(text: str, most: int) -> set[int] | None:
    """The box numbers of an answer; None: it is no list of numbers from 1 to ``most``."""
    found = _list_in(text, list[int])
    if found is None or not all(1 <= number <= most for number in found):
        return None
    return set(found)


def numbered(photo: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of the photo with the boxes drawn and numbered from 1."""
    drawn = photo.copy()
    pen = ImageDraw.Draw(drawn)
    line_px = max(2, max(photo.size) // 300)
    text_px = max(12, max(photo.size) // 40)
    for number, box in reversed(list(enumerate(boxes, 1))):  # the surest box last, on top of the others
        colour = COLOURS[(number - 1) % len(COLOURS)]
        left, top, right, bottom = (share * side for share, side in zip(box.corners, photo.size * 2, strict=True))
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line_px)
        corner = (min(left, photo.width - 2 * text_px), min(top, photo.height - text_px))
        plate = pen.textbbox(corner, str(number), font_size=text_px)
        pen.rectangle(plate, fill=colour)
        pen.text(corner, str(number), fill=(0, 0, 0), font_size=text_px)
    return drawn


def _list_in(text: str, kind: type[T]) -> T | None:
    """The one JSON list that an answer is, of this kind; None: it is something else."""
    said = text.rpartition("</think>")[2].strip()
    if block := _BLOCK.fullmatch(said):
        said = block[1]
    try:
        return msgspec.json.decode(said, type=kind)
    except msgspec.DecodeError:
        return None
