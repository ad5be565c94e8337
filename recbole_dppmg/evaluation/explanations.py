"""Measures of generated explanations that need no judge: are they true of the item, varied, and whole?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from recbole_dppmg.generators.causal_lm import repetition
from recbole_dppmg.generators.prompts import READER, attributes_of, name_of
from recbole_dppmg.types import Item

_WORD = re.compile(r"\w+")
_OF_READER = re.compile(rf"(?<=[.!?]\s){re.escape(READER)}\b[^.!?]*")


def measure_texts(
    items: Sequence[Item], texts: Sequence[str], attributes: Sequence[str], references: Sequence[str] | None = None
) -> dict[str, float]:
    """What a set of explanations is like, one number per name.

    `names_item`, `attribute_precision`, `attribute_recall`, `empty`, `words` (mean length), `repetition` (mean
    share of repeated word pairs), `distinct_2` (distinct among all word pairs), `usr` (unique sentence ratio, Li et
    al., CIKM 2020: distinct texts among all), `div` (mean number of attributes that two texts share, ibid.; lower is
    more varied), and with references `rouge_l` (mean F1) and `bleu_4` (corpus, 0 to 100).

    Attributes are looked for outside the item's name, as whole words of any case. Precision and recall are of what a
    text says of its item, hence not of a sentence that begins with `prompts.READER` and says what the reader looks
    for: every attribute of the catalogue counts that is named, and the precise ones are the item's own.

    Args:
        items: N of them, which the texts are about.
        texts: N explanations; an empty one is one that failed.
        attributes: every attribute of the catalogue.
        references: N texts to compare with, e.g. reviews.
    """
    patterns = {a: re.compile(rf"(?<!\w){re.escape(a)}(?!\w)", re.I) for a in attributes if a}
    named, told, own = [], [], []
    for item, text in zip(items, texts, strict=True):
        rest = re.sub(re.escape(name_of(item)), " ", text, flags=re.I)
        told.append({a for a, pattern in patterns.items() if pattern.search(rest)})
        rest = _OF_READER.sub(" ", rest)
        named.append({a for a, pattern in patterns.items() if pattern.search(rest)})
        own.append(set(attributes_of(item)))
    right = sum(len(n & o) for n, o in zip(named, own, strict=True))
    words = [[w.lower() for w in _WORD.findall(text)] for text in texts]
    pairs = [pair for row in words for pair in pairwise(row)]
    count = max(1, len(texts))
    found = {
        "names_item": sum(name_of(i).casefold() in t.casefold() for i, t in zip(items, texts, strict=True)) / count,
        "attribute_precision": right / max(1, sum(map(len, named))),
        "attribute_recall": right / max(1, sum(map(len, own))),
        "empty": sum(not text.strip() for text in texts) / count,
        "words": sum(map(len, words)) / count,
        "repetition": sum(map(repetition, texts)) / count,
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        "usr": len(set(texts)) / count,
        "div": _shared(told),
    }
    return found | (_against(texts, references) if references is not None else {})


def _shared(named: Sequence[set[str]]) -> float:
    """Mean over pairs of texts of how many attributes both name, from how many texts name each."""
    number = len(named)
    counts: dict[str, int] = {}
    for attributes in named:
        for attribute in attributes:
            counts[attribute] = counts.get(attribute, 0) + 1
    return sum(n * (n - 1) for n in counts.values()) / max(1, number * (number - 1))


def _against(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(r, t)["rougeL"].fmeasure for t, r in zip(texts, references, strict=True)]
    return {"rouge_l": sum(rouge) / max(1, len(rouge)), "bleu_4": corpus_bleu(list(texts), [list(references)]).score}
