"""What the text generator is taught to say: facts of the item, chosen by what the user's tokens mean, and what the
user looks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from recbole_dppmg.generators.prompts import READER, about, attributes_of, clean, name_of
from recbole_dppmg.types import Item, PreferenceTokens, token_name

_SHOWN = 2  # reasons in a sentence
_TASTES = 4  # words of the coarsest token that are told, half as many of each finer one
_REVIEW = 240  # characters
_WORD = re.compile("[^\\W\\d_][\\w'\u2019-]{3,}")
# few frames, all of which the prompt's examples show: a small model then has only to choose
_FITS = "{name} is {own}{year}, close to what you choose."
_THEMES = "{name}{year} has {own} in it, close to what you choose."
_OTHER = "{name} is {kinds}{year}, a change from your usual choices."
_BARE = "{name}{year} is close to what you choose."

#: The glossary's words of a user's tokens, per modality and level, coarse levels first.
Words = Mapping[str, Sequence[Sequence[str]]]


def words_of(tokens: PreferenceTokens, glossary: Mapping[str, Mapping[str, Sequence[str]]]) -> Words:
    """What the glossary says of a user's tokens."""
    return {
        modality: [glossary[token_name(modality, level, code)]["words"] for level, code in enumerate(codes)]
        for modality, codes in tokens.items()
    }


def tastes_of(words: Words) -> list[str]:
    """What a user is told to look for: most words of the coarsest token, half as many of each finer one; those of
    the text tokens, where there are any.

    >>> tastes_of({"text": [["war", "crime", "noir", "gun", "spy"], ["war", "love", "sea", "sun"], ["sky"]]})
    ['war', 'crime', 'noir', 'gun', 'love', 'sea', 'sky']
    """
    found: list[str] = []
    told = next((words[m] for m in ("text", "image") if any(words.get(m, ()))), ())
    for level, own in enumerate(told):
        fresh = [word for word in (clean(word, 40) for word in own) if word and word not in found]
        found += fresh[: max(1, _TASTES >> level)]
    return found


def teaching_target(item: Item, words: Words) -> str:
    """One or two sentences on why `item` suits a user. The first begins with its name and says of it only what its
    own year, attributes and text say, chosen by the user's words. The second tells what the user looks for.

    Args:
        item: of which the text is to be.
        words: of the user's tokens.

    >>> up = Item("1", "Up", "", ("Animation", "Drama"), 2009)
    >>> teaching_target(up, {"text": [["drama", "horror"]]})
    'Up is Drama from 2009, close to what you choose. You look for drama and horror.'
    >>> teaching_target(up, {"text": [["western"]]})
    'Up is Animation and Drama from 2009, a change from your usual choices. You look for western.'
    """
    ordered = [[word for level in words.get(m, ()) for word in level] for m in ("image", "text")]
    rank = {word: n for row in ordered for n, word in reversed(list(enumerate(row)))}
    kinds = attributes_of(item)
    own = sorted((kind for kind in kinds if kind.lower() in rank), key=lambda kind: rank[kind.lower()])[:_SHOWN]
    frame = _FITS if own else _OTHER if kinds else _THEMES
    own = own or _themes(item, rank)[:_SHOWN]
    text = (frame if own or kinds else _BARE).format(
        name=name_of(item), own=listed(own), kinds=listed(kinds[:3]), year=f" from {item.year}" if item.year else ""
    )
    tastes = tastes_of(words)
    return f"{text} {READER} {listed(tastes)}." if tastes else text


def reviewed(item: Item, review: str) -> str:
    """What a user wrote of an item as a teaching text: the item's name and, cleaned and cut, the review's beginning.

    >>> reviewed(Item("1", "Up", ""), "A  joy.<|im_end|>")
    'Up: A joy. im_end'
    """
    return f"{name_of(item)}: {clean(review, _REVIEW)}"


def _themes(item: Item, rank: dict[str, int]) -> list[str]:
    """Words of the item's description that are the user's too, the user's strongest first."""
    found = {word for word in _WORD.findall(about(item).lower()) if word in rank}
    return sorted(found, key=rank.__getitem__)


def listed(words: Sequence[str]) -> str:
    """Words as a person lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([part for part in (", ".join(words[:-1]), *words[-1:]) if part])
