"""A served model's reply, as far as it is read: its text, and the log-probabilities of each of its tokens."""

from msgspec import Struct

#: How a server names a token that it was asked to name by number.
_NUMBER = "token_id:"


class Candidate(Struct, frozen=True, gc=False):
    """One token that could stand at a place."""

    token: str
    logprob: float

    @property
    def number(self) -> int:
        """In the model's vocabulary; -1: the server named it otherwise."""
        return int(self.token.removeprefix(_NUMBER)) if self.token.startswith(_NUMBER) else -1


class Place(Struct, frozen=True):
    """One token of the reply, and what could have stood there."""

    token: str
    logprob: float = -9999.0
    #: Of its text, UTF-8; None: unknown.
    bytes: list[int] | None = None
    top_logprobs: list[Candidate] = []

    def logprobs(self) -> dict[int, float]:
        """By token."""
        found = {one.number: one.logprob for one in self.top_logprobs}
        found.pop(-1, None)
        return found

    @property
    def number(self) -> int:
        """Of the token that stands there."""
        return Candidate(self.token, self.logprob).number

    @property
    def blank(self) -> bool:
        """Nothing but white space."""
        return self.bytes is not None and not bytes(self.bytes).strip()


class Logprobs(Struct, frozen=True):
    """Of all places."""

    content: list[Place] | None = None


class Said(Struct, frozen=True):
    """The model's message, its thoughts apart where the server has a parser for them."""

    content: str | None = None
    reasoning: str | None = None
    #: As older releases call it.
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """All that it said."""
        return (self.reasoning or self.reasoning_content or "") + (self.content or "")


class Choice(Struct, frozen=True):
    """One reply."""

    message: Said
    logprobs: Logprobs | None = None
    finish_reason: str | None = None

    @property
    def places(self) -> list[Place]:
        """Its tokens; empty without log-probabilities."""
        return (self.logprobs and self.logprobs.content) or []


class Completion(Struct, frozen=True):
    """What POST /v1/chat/completions returns."""

    choices: list[Choice]


def answer_place(places: list[Place], end_of_thoughts: int | None = None) -> Place | None:
    """Where the answer stands: the first token that is more than white space.

    Args:
        places: of the reply.
        end_of_thoughts: the token after which the answer comes; None: from the start. None is returned without it.
    """
    rest = iter(places)
    if end_of_thoughts is not None and not any(place.number == end_of_thoughts for place in rest):
        return None
    return next((place for place in rest if not place.blank), None)
