"""From the log-probabilities of one token to a score: the log-odds of yes against no.

What the answer would have been otherwise is not thrown away: a model that wants to say something else has not answered.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

#: The words, in every way that a model may write one: those that are one token count.
YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
NO = ("No", "no", "NO", " No", " no", " NO")

#: A score is never beyond this: P is then 1e-13.
SCORE_MAX = 30.0

#: How a server is asked for the log-probabilities of the words' tokens.
#: chosen: those tokens, by ``logprob_token_ids``; the best, and later releases have it.
#: allowed: the answer must be one of them, and log-probabilities are taken after that: P is exact, and what the model
#: would have said otherwise is not known.
#: top: the 20 most likely tokens; a word that is not among them counts as the last that is.
Way = Literal["chosen", "allowed", "top"]


class Words(Struct, frozen=True):
    """The tokens that mean yes, and those that mean no."""

    yes: frozenset[int]
    no: frozenset[int]

    @property
    def all(self) -> list[int]:
        """Both."""
        return sorted(self.yes | self.no)


class Reading(Struct, frozen=True):
    """What one answer says."""

    #: log P(yes) - log P(no), within [-SCORE_MAX, SCORE_MAX].
    score: float
    #: Probability of everything else, 0 to 1; None: this way cannot know it.
    outside: float | None


def read(logprobs: Mapping[int, float], words: Words, way: Way) -> Reading | None:
    """The answer at one token's place; None: it cannot be read.

    P(yes) / P(no) is the ratio of sums over spellings, each exp(log-probability).

    Args:
        logprobs: by token, natural logarithms, as the server said.
        words: of the model.
        way: that it was asked.
    """
    yes, no = (_log_sum(logprobs[i] for i in ids if i in logprobs) for ids in (words.yes, words.no))
    if way == "top":
        if max(yes, no) == -math.inf:
            return None
        # Whatever is not in the list is no likelier than its last.
        least = min(logprobs.values())
        score = (yes if yes > -math.inf else least) - (no if no > -math.inf else least)
    elif any(i not in logprobs for i in words.all):
        return None
    else:
        score = yes - no
    if math.isnan(score):
        return None
    outside = None if way == "allowed" else min(max(1 - math.exp(yes) - math.exp(no), 0.0), 1.0)
    return Reading(min(max(score, -SCORE_MAX), SCORE_MAX), outside)


def works(logprobs: Mapping[int, float], words: Words, way: Way) -> bool:
    """Whether a first answer shows that the server can be asked this way."""
    if read(logprobs, words, way) is None:
        return way == "top" and len(logprobs) >= 2 and _are_logprobs(logprobs)
    total = math.exp(_log_sum(logprobs.values()))
    # Allowed alone, they have all probability; less means that the list was made before the others were ruled out.
    return _are_logprobs(logprobs) and (way != "allowed" or total > 0.99)


def _are_logprobs(logprobs: Mapping[int, float]) -> bool:
    """Not logits, which a server may be told to give instead."""
    return max(logprobs.values()) <= 1e-6 and _log_sum(logprobs.values()) <= 1e-3


def _log_sum(logprobs: Iterable[float]) -> float:
    found = list(logprobs)
    top = max(found, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(one - top) for one in found))
