"""What a served model is sent about one photo: JSON of some 20 to 200 kB, all but one of which is the photo.

So the photo's bytes are put between two halves, and no encoder copies or escapes them.
"""

from typing import Any

import msgspec
from msgspec import Struct

from workers.yes_no import BIAS, FORCED, Way, Words

#: Most log-probabilities that a server gives by default.
TOP = 20
#: Of an answer after thoughts: line breaks may come before its word.
ANSWER_TOKENS = 4

_PHOTO = "PHOTO-GOES-HERE"


class Question(Struct, frozen=True):
    """A request, without its photo."""

    before: bytes
    after: bytes

    def about(self, photo: bytes) -> bytes:
        """The request about a photo: a JPEG in base64."""
        return b"".join((self.before, photo, self.after))


class Wording(Struct, frozen=True):
    """How one model is asked.

    Args:
        model: its name at the server.
        prompt: what it is asked about the photo.
        words: its tokens for yes and no.
        way: how log-probabilities are asked for.
        template: what the chat template is told, such as that no thoughts are wanted; whoever started the server.
    """

    model: str
    prompt: str
    words: Words
    way: Way
    template: dict[str, bool | str] = {}

    def at_once(self) -> Question:
        """The first token is the answer."""
        return self._question(self._answer(1))

    def after_thoughts(self, budget: int, slack: int) -> Question:
        """The server cuts the thoughts at ``budget`` tokens; the answer comes within ``slack`` more."""
        return self._question(self._answer(budget + slack) | {"thinking_token_budget": budget})

    def think(self, budget: int, end: str) -> Question:
        """Thoughts alone, up to ``end`` or so many tokens."""
        return self._question({"max_tokens": budget, "stop": [end]})

    def conclude(self, thoughts: str) -> Question:
        """The answer after thoughts that are its own."""
        said = {"role": "assistant", "content": thoughts}
        tokens = 1 if self.way in FORCED else ANSWER_TOKENS
        more = {"add_generation_prompt": False, "continue_final_message": True}
        return self._question(self._answer(tokens) | more, said)

    def _answer(self, max_tokens: int) -> dict[str, Any]:
        fields: dict[str, Any] = {"max_tokens": max_tokens, "logprobs": True, "return_tokens_as_token_ids": True}
        if self.way == "chosen":
            return fields | {"logprob_token_ids": self.words.all}
        if self.way == "biased":
            return fields | {"logit_bias": dict.fromkeys(self.words.all, BIAS), "top_logprobs": TOP}
        if self.way == "allowed":
            return fields | {"allowed_token_ids": self.words.all, "top_logprobs": len(self.words.all)}
        return fields | {"top_logprobs": TOP}

    def _question(self, fields: dict[str, Any], *said: dict[str, Any]) -> Question:
        url = {"url": "data:image/jpeg;base64," + _PHOTO}
        parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": self.prompt}]
        body = {"model": self.model, "temperature": 0.0, "messages": [{"role": "user", "content": parts}, *said]}
        if self.template:
            body["chat_template_kwargs"] = self.template
        before, _, after = msgspec.json.encode(body | fields).partition(_PHOTO.encode())
        return Question(before, after)
