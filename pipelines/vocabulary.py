"""The words of a prompt that a model does not know, each with the nearest that it does."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a about an and any are at be beautiful but by can could create cute draw drawing drawn for from "
        "generate give has have he her his i illustration image in is it its just let's like lovely make "
        "me my near nice of on one or our paint painting picture please pretty render scene she show "
        "some someone something that the their them then there these they this those to very want was we "
        "were where which while who will with would you your"
    )
)


def split_words(text: str) -> list[str]:
    """The words of a text in lower case; "jet-black" is one word."""
    return _WORD.findall(text.lower())


def unknown_words(prompt: str, known: Collection[str]) -> dict[str, str]:
    """Words of the prompt that are not known -> the nearest known word, in the prompt's order ("" if none is near).

    known: the words, as in a checkpoint's vocabulary.json. Common function words and plurals and
    hyphenated forms of known words are never reported.
    """
    vocabulary = frozenset(word.lower() for word in known)
    found: dict[str, str] = {}
    for word in split_words(prompt):
        if word not in found and not _known(word, vocabulary):
            nearest = get_close_matches(word, sorted(vocabulary - _FUNCTION_WORDS), n=1, cutoff=0.0)
            found[word] = nearest[0] if nearest else ""
    return found


def _known(word: str, vocabulary: frozenset[str]) -> bool:
    if word in vocabulary or word in _FUNCTION_WORDS:
        return True
    stems = [word.removesuffix(end) for end in ("'s", "’s", "s", "es") if word.endswith(end)]
    if any(stem in vocabulary for stem in stems):
        return True
    parts = re.split(r"[-'’]", word)
    return len(parts) > 1 and all(_known(part, vocabulary) for part in parts if part)
