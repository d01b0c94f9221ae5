"""Every word that storybook's captions are made of."""

from __future__ import annotations

from functools import cache

from mmgen.pipelines.vocabulary import split_words
from mmgen.storybook.captions import FRAME_WORDS
from mmgen.storybook.wording import all_phrases


@cache
def words(held_out: bool = True) -> frozenset[str]:
    """Every word a caption can contain, lower case; held_out: those of the wording test too."""
    found = {word for phrase in all_phrases(held_out) for word in split_words(phrase)}
    return frozenset(found | FRAME_WORDS)
