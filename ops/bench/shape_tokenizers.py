"""Tokenizers of the real kind and size for checkpoints at random weights: the given words are a token each.

What the words cost is what is measured, not what they mean: a real vocabulary has common words as one token too, so a
prompt is about as long here as there. The rest of each vocabulary is filled with tokens that no text has.
"""

from collections.abc import Iterable, Sequence

from transformers import BartTokenizer, BertTokenizer, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

#: Tokens of bert-base-uncased, of CLIP's byte pairs, of BART's. Source: the defaults of the libraries' configurations.
BERT_TOKENS, CLIP_TOKENS, BART_TOKENS = 30_522, 49_408, 50_265

_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789.,-_"


def bert(words: Iterable[str]) -> BertTokenizer:
    """As bert-base-uncased: the words, and letters for all others."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*_LOWER, *(f"##{letter}" for letter in _LOWER)]
    return BertTokenizer(vocab=_vocabulary([*special, *letters, *words], BERT_TOKENS))


def clip(words: Iterable[str]) -> CLIPTokenizer:
    """As CLIP's: bytes, those that end a word, the words; its two marks are the last."""
    symbols = _bytes()
    parts, merges = _pairs([[*word[:-1], f"{word[-1]}</w>"] for word in words])
    vocabulary = _vocabulary([*symbols, *(f"{symbol}</w>" for symbol in symbols), *parts], CLIP_TOKENS - 2)
    marks = {"<|startoftext|>": CLIP_TOKENS - 2, "<|endoftext|>": CLIP_TOKENS - 1}
    return CLIPTokenizer(vocab=vocabulary | marks, merges=merges)


def bart(words: Iterable[str], marks: Sequence[str]) -> BartTokenizer:
    """As BART's, with marks of one's own behind its tokens, in their order; the last is the place of the photo."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    # Within a sentence a word begins with its space, which this alphabet writes so.
    parts, merges = _pairs([["\u0120", *word] for word in words])
    vocabulary = _vocabulary([*special, *_bytes(), *parts], BART_TOKENS)
    vocabulary |= {mark: number for number, mark in enumerate(marks, BART_TOKENS)}
    tokenizer = BartTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens={"image_token": marks[-1]})
    tokenizer.add_tokens(list(marks), special_tokens=True)
    return tokenizer


def _bytes() -> list[str]:
    """The letters that byte pairs begin with: one for each of the 256 bytes."""
    return sorted(bytes_to_unicode().values())


def _pairs(words: Iterable[Sequence[str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """The pairs that make each word from its symbols, left to right, and what they make."""
    merges: dict[tuple[str, str], str] = {}
    for symbols in words:
        left = symbols[0]
        for right in symbols[1:]:
            merges[left, right] = left = left + right
    return list(merges.values()), list(merges)


def _vocabulary(tokens: Iterable[str], size: int) -> dict[str, int]:
    """Tokens by number, filled up to ``size``: tokens that are added later are numbered from there."""
    known = list(dict.fromkeys(tokens))
    known += [f"<filler-{number}>" for number in range(len(known), size)]
    return {token: number for number, token in enumerate(known)}
