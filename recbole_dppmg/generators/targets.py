"""What the text generator is taught to say: facts of the item, chosen by what the user's tokens mean."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from recbole_dppmg.generators.prompts import about, attributes_of, name_of
from recbole_dppmg.types import Item

_SHOWN = 2  # reasons in a sentence
_COARSE = 16  # words of the user's two coarsest tokens; what stands there counts as the user's main taste
_WORD = re.compile("[^\\W\\d_][\\w'\u2019-]{3,}")
# few frames, all of which the prompt's examples show: a small model then has only to choose
_MAIN = ("{name} is {own}{year}, what you choose most.", "{name} has the {own} that you keep coming back to.")
_SIDE = ("{name} has {own} in it, one of the things you look for.",)
_OTHER = ("{name} is {kinds}{year}, a change from your usual choices.",)
_BARE = ("{name}{year} is close to what you usually choose.",)
_ALSO = "There is {rest} in it too."


def teaching_target(item: Item, text_words: Sequence[str], image_words: Sequence[str], seed: int) -> str:
    """One or two sentences on why `item` suits a user. They begin with its name and say of it only what its own
    year, attributes and text say; which of that is said, and how warmly, follows from the user's words.

    Args:
        item: of which the text is to be.
        text_words, image_words: the glossary's words of the user's tokens, coarse levels first.
        seed: chooses among phrasings.

    >>> up = Item("1", "Up", "", ("Animation", "Drama"), 2009)
    >>> teaching_target(up, ["drama", "horror"], [], seed=1)
    'Up is Drama from 2009, what you choose most.'
    >>> teaching_target(up, ["western"], [], seed=1)
    'Up is Animation and Drama from 2009, a change from your usual choices.'
    """
    rng = random.Random(seed)
    rank = {word: n for words in (image_words, text_words) for n, word in reversed(list(enumerate(words)))}
    kinds = attributes_of(item)
    own = sorted((kind for kind in kinds if kind.lower() in rank), key=lambda kind: rank[kind.lower()])[:_SHOWN]
    told = {kind.lower() for kind in kinds}
    own += [w for w in _themes(item, rank) if w not in told][: _SHOWN - len(own)]
    rest = [kind for kind in kinds if kind not in own]
    frames = (_OTHER if kinds else _BARE) if not own else _MAIN if rank[own[0].lower()] < _COARSE else _SIDE
    text = rng.choice(frames).format(
        name=name_of(item), own=listed(own), kinds=listed(kinds[:3]), year=f" from {item.year}" if item.year else ""
    )
    if own and rest and rng.random() < 0.4:
        text += " " + _ALSO.format(rest=listed(rest[:_SHOWN]))
    return text


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
