"""What a vision-language model is asked about a photo: one file each, its version in its name.

A prompt that was used is never changed: calibrators were fitted on its answers. A better one is a new file, with the
next number.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from configs.errors import ConfigError

PROMPTS = Path(__file__).parent / "prompts"


@cache
def load_prompt(name: str) -> str:
    """The text of configs/prompts/NAME.txt, without the line break at its end.

    Raises:
        ConfigError: there is no such file, or it is empty.
    """
    path = PROMPTS / f"{name}.txt"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(found.stem for found in PROMPTS.glob("*.txt")))
        raise ConfigError(f"prompt {name!r} cannot be read: {error} (configs/prompts has {known})") from None
    if not text:
        raise ConfigError(f"prompt {name!r}: {path} is empty")
    return text


def questions(options: Mapping[str, object]) -> list[str]:
    """The texts of a row's ``questions``: each a prompt, or, where it has a space in it, the question itself.

    Raises:
        ConfigError: there are none, or one cannot be read.
    """
    asked = options.get("questions", [])
    if not isinstance(asked, list) or not asked:
        raise ConfigError(f"questions is a list of prompts, not {asked!r}")
    return [text if " " in text else load_prompt(text) for text in asked]
