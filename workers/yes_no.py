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

#: What a server can be asked to add to a token's logit, at most.
BIAS = 100.0

#: How a server is asked for the log-probabilities of the words' tokens, in the order in which it is tried.
#: chosen: those tokens, by ``logprob_token_ids``; the best, and later releases have it.
#: biased: BIAS is added to their logits, and log-probabilities are taken after that: P is exact, and what is listed
#: beside them, less that bias, is what the model would have said otherwise, at the least.
#: allowed: the answer must be one of them, and log-probabilities are taken after that: P is exact, and what the model
#: would have said otherwise is not known. A server that drafts tokens takes this where it refuses a bias.
#: top: the 20 most likely tokens; a word that is not among them counts as the last that is.
Way = Literal["chosen", "biased", "allowed", "top"]

#: They leave the model no other word: asked so, it must stand where its answer comes, its thoughts behind it.
FORCED: tuple[Way, ...] = ("biased", "allowed")


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
    #: Probability of everything else, 0 to 1; of a biased answer that of the likeliest others, so at least so much;
    #: None: this way cannot know it.
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
    others = _log_sum(_others(logprobs, words))
    return Reading(min(max(score, -SCORE_MAX), SCORE_MAX), _outside(way, _log_sum((yes, no)), others))


def _outside(way: Way, inside: float, others: float) -> float | None:
    """Probability of what is no word, from the logarithms of that of the words and of all others in the list."""
    if way == "allowed":
        return None
    if way == "biased":
        # Beyond that a float overflows, and 1 it is anyway.
        odds = math.exp(min(others + BIAS - inside, SCORE_MAX))
        return odds / (1 + odds)
    return min(max(1 - math.exp(inside), 0.0), 1.0)


def works(logprobs: Mapping[int, float], words: Words, way: Way) -> bool:
    """Whether a first answer shows that the server can be asked this way."""
    if read(logprobs, words, way) is None:
        return way == "top" and len(logprobs) >= 2 and _are_logprobs(logprobs)
    return _are_logprobs(logprobs) and (way not in FORCED or _forced(logprobs, words, way))


def _forced(logprobs: Mapping[int, float], words: Words, way: Way) -> bool:
    """Whether the words have all probability, and not because the model happens to be that sure.

    Where the list was made before the others were put down, or they never were, one of them is near. Put down by BIAS
    they are far, also of a model that is as sure as can be of another word; and they are in the list, which is longer
    than the words.
    """
    nearest = max(_others(logprobs, words), default=0.0 if way == "biased" else -math.inf)
    inside = _log_sum(logprobs[i] for i in words.all)
    return inside > math.log(0.99) and nearest < SCORE_MAX - BIAS


def _others(logprobs: Mapping[int, float], words: Words) -> list[float]:
    """Of the tokens in the list that are no words."""
    return [logprob for i, logprob in logprobs.items() if i not in words.yes and i not in words.no]


def _are_logprobs(logprobs: Mapping[int, float]) -> bool:
    """Not logits, which a server may be told to give instead."""
    return max(logprobs.values()) <= 1e-6 and _log_sum(logprobs.values()) <= 1e-3


def _log_sum(logprobs: Iterable[float]) -> float:
    found = list(logprobs)
    top = max(found, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(one - top) for one in found))
