"""The words of a prompt that a model does not know, each with the nearest that it does."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    """a about an and any are at be but by can could draw drawn for from give has have he her his i in is it its just
    like make me my near of on one or our paint picture image illustration drawing painting please render scene she show
    some that the their them then there these they this those to very want was we were where which while who will with
    would you your something someone create generate nice beautiful pretty cute lovely""".split()
)


def split_words(text: str) -> list[str]:
    """The words of a text in lower case; "jet-black" is one word."""
    return _WORD.findall(text.lower())


def unknown_words(prompt: str, known: Collection[str]) -> dict[str, str]:
    """Words of the prompt that are not known -> the nearest known word, in the prompt's order ("" if none is known).

    known: in lower case, as in a checkpoint's vocabulary.json. Common function words, plurals and hyphenated forms of
    known words are never reported.
    """
    candidates = sorted(set(known) - _FUNCTION_WORDS)
    found: dict[str, str] = {}
    for word in split_words(prompt):
        if word not in found and not _is_known(word, known):
            nearest = get_close_matches(word, candidates, n=1, cutoff=0.0)
            found[word] = nearest[0] if nearest else ""
    return found


def _is_known(word: str, known: Collection[str]) -> bool:
    if word in known or word in _FUNCTION_WORDS:
        return True
    stems = [word.removesuffix(end) for end in ("'s", "’s", "s", "es") if word.endswith(end)]
    if any(stem in known for stem in stems):
        return True
    parts = re.split(r"[-'’]", word)
    return len(parts) > 1 and all(_is_known(part, known) for part in parts if part)
