"""What a person would say of a scene, in many ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mmgen.storybook import wording
from mmgen.storybook.catalogue import BIG, COLOURS, SMALL, SPRITES, Words
from mmgen.storybook.scene import Group, Light, Place, Relation

if TYPE_CHECKING:
    import numpy as np

Split = Literal["train", "wording"]
MORE = 0.4  # of the phrases of training captions that can be said in other words
FRAME_WORDS = frozenset({"a", "an", "the", "one", "there", "is", "are"})


class _Speaker:
    """Draws phrases; in the wording split every second one that has a held-out form uses it."""

    def __init__(self, rng: np.random.Generator, split: Split) -> None:
        self.chance = rng.random
        self.novel = split == "wording"
        self.said_novel = False

    def say(self, words: Words) -> str:
        options = words.trained
        if self.novel and words.held_out and self.chance() < 0.5:
            options, self.said_novel = words.held_out, True
        elif not self.novel and words.more and self.chance() < MORE:
            options = words.more
        return options[int(self.chance() * len(options))]


def caption(
    groups: tuple[Group, ...],
    relation: Relation | None,
    place: Place,
    light: Light,
    backdrop: str | None,
    rng: np.random.Generator,
    split: Split = "train",
) -> str:
    """One caption of a scene's parts: 15 % name no place, 30 % no light.

    split: "wording" says at least one thing in a way that training never does.
    """
    while True:
        speaker = _Speaker(rng, split)
        text = _sentence(speaker, groups, relation, _where(speaker, place, light, backdrop))
        if speaker.said_novel or not speaker.novel:
            break
    return f"{text[0].upper()}{text[1:]}." if speaker.chance() < 0.15 else text


def _where(speaker: _Speaker, place: Place, light: Light, backdrop: str | None) -> list[str]:
    """The phrases of place and light, in the order they are said; none, one or two."""
    phrases = []
    if speaker.chance() >= 0.15:
        phrase = speaker.say(wording.PLACES[place])
        phrases.append(phrase.format(backdrop).replace("a orange", "an orange") if backdrop else phrase)
    if place != "plain" and speaker.chance() >= 0.3:
        phrases.append(speaker.say(wording.LIGHTS[light]))
    if len(phrases) == 2 and speaker.chance() < 0.3:
        phrases.reverse()
    return phrases


def _sentence(
    speaker: _Speaker, groups: tuple[Group, ...], relation: Relation | None, where: list[str]
) -> str:
    r = speaker.chance()
    subject = _subject(speaker, groups, relation, bare=0.12 <= r < 0.2 and not where)
    if where and r < 0.12:
        return f"{' '.join(where)}, {subject}"
    if len(where) == 2 and r < 0.2:
        return f"{where[0]}, {subject} {where[1]}"
    if r > 0.95:
        verb = "is" if groups[0].count == 1 else "are"
        subject = f"there {verb} {subject}"
    elif r > 0.75 or (speaker.novel and r > 0.4):
        subject = speaker.say(wording.PREFIXES) + subject
    comma = "," if where and speaker.chance() < 0.12 else ""
    return f"{subject}{comma} {' '.join(where)}" if where else subject


def _subject(speaker: _Speaker, groups: tuple[Group, ...], relation: Relation | None, bare: bool) -> str:
    if len(groups) == 1:
        return _noun_phrase(speaker, groups[0], bare)
    first, second = (_noun_phrase(speaker, group, bare) for group in groups)
    swapped = speaker.chance() < 0.5
    if relation is None:
        pattern = speaker.say(wording.AND)
    else:
        pattern = speaker.say(wording.RELATIONS[wording.INVERSE[relation] if swapped else relation])
    return pattern.format(second, first) if swapped else pattern.format(first, second)


def _noun_phrase(speaker: _Speaker, group: Group, bare: bool) -> str:
    """ "a small red car", "two cats", or without its article "red car"."""
    kind = SPRITES[group.sprite]
    words = []
    if group.size_word:
        words.append(speaker.say(SMALL if group.size_word == "small" else BIG))
    if group.colour:
        words.append(_colour(speaker, group.colour))
    elif kind.natural and speaker.chance() < 0.25:
        words.append(_colour(speaker, kind.natural))
    words.append(speaker.say(kind.singular if group.count == 1 else kind.plural))
    noun = " ".join(words)
    if group.count == 2:
        return speaker.say(wording.TWO).format(noun)
    if bare:
        return noun
    r = speaker.chance()
    if r < 0.08:
        return f"the {noun}"
    if r < 0.12:
        return f"one {noun}"
    return f"an {noun}" if noun[0] in "aeio" or noun.startswith("umb") else f"a {noun}"


def _colour(speaker: _Speaker, name: str) -> str:
    """The colour's own name half of the time, else one of its synonyms."""
    words = COLOURS[name].words
    return name if not speaker.novel and speaker.chance() < 0.5 else speaker.say(words)
