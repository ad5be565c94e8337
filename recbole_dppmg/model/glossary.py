"""What a preference token stands for: the items and words that set it apart from the other tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.model.space import PreferenceSpace
from recbole_dppmg.types import Item, token_name

_WORD = re.compile(r"[^\W\d_][\w'’-]{2,}")
#: English words that tell nothing of a taste, however often a token's items have them.
_EMPTY = frozenset({
    "the", "and", "for", "with", "from", "into", "over", "under", "out", "off", "his", "her", "its", "our",
    "your", "their", "that", "this", "these", "those", "what", "who", "whom", "how", "why", "when", "where",
    "not", "are", "was", "were", "has", "have", "had", "but", "you", "they", "she", "him", "them", "one", "all",
    "any", "del", "les", "des", "der", "das", "und",
})  # fmt: skip
_NEAREST = 50  # items whose words are counted, at most an eighth of all
_SHOWN = 8
_LIFT = 1.5  # how much more often than in all items
_SUPPORT = 2  # items that a word must occur in


def build_glossary(space: PreferenceSpace, items: Sequence[Item]) -> dict[str, dict[str, list[str]]]:
    """Titles and words per token name, e.g. `{"<text_0_3>": {"items": [...], "words": [...]}}`.

    Items are those of the more popular half that lie further towards the code than towards the level's
    other codes. Words are those of the 50 nearest items' texts by `p(w | token) log (p(w | token) / p(w))`,
    their share of the divergence.

    Args:
        items: one per internal id, as the space counts them.
    """
    told = torch.tensor([bool(item.text) for item in items])
    uses = torch.bincount(space.history.items, minlength=len(items))
    if not told.any():
        return {}
    # the better known half, so that the examples say something to a reader
    rows = (told & (uses >= uses[told].median())).nonzero().squeeze(1)
    number = min(_NEAREST, max(_SHOWN, len(rows) // 8), len(rows))
    vocabulary: dict[str, int] = {}
    words = ItemLists.of([words_of(items[row], vocabulary) for row in rows.tolist()])
    names = list(vocabulary)
    glossary = {}
    for modality in space.modalities:
        vectors = space.item_preference[modality][rows]
        for level, codebook in enumerate(space.codebooks[modality]):
            likeness = codebook @ vectors.T
            nearest = (likeness - likeness.mean(0)).topk(number, dim=1).indices
            chosen = _distinctive(words, nearest, len(names))
            for code, (near, own) in enumerate(zip(rows[nearest[:, :_SHOWN]].tolist(), chosen, strict=True)):
                glossary[token_name(modality, level, code)] = {
                    "items": list(dict.fromkeys(items[row].title or items[row].id for row in near)),
                    "words": [names[word] for word in own],
                }
    return glossary


def words_of(item: Item, vocabulary: dict[str, int]) -> list[int]:
    """The distinct telling words of an item's text as numbers; `vocabulary` grows by new ones."""
    found = {word.lower() for word in _WORD.findall(item.text)} - _EMPTY
    return [vocabulary.setdefault(word, len(vocabulary)) for word in sorted(found)]


def _distinctive(words: ItemLists, nearest: Tensor, n_words: int) -> list[list[int]]:
    """The words of each row of items, int64 (K, N), that tell it from all items; best first."""
    n_items, (n_codes, n_nearest) = len(words.offsets) - 1, nearest.shape
    overall = torch.bincount(words.items, minlength=n_words) / n_items
    lists = words.take(nearest.flatten())
    keys, counts = torch.unique(lists.rows // n_nearest * n_words + lists.items, return_counts=True)
    code, word = keys // n_words, keys % n_words
    share = counts / n_nearest
    lift = share / overall[word]
    score = torch.where((counts >= _SUPPORT) & (lift >= _LIFT), share * lift.log(), 0)
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(code[order], stable=True)]
    ends = torch.bincount(code, minlength=n_codes).cumsum(0).tolist()
    result = []
    for start, end in zip([0, *ends], ends, strict=False):
        best = order[start:end][:_SHOWN]
        result.append(word[best[score[best] > 0]].tolist())
    return result
