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


def measure_texts(items: Sequence[Item], texts: Sequence[str], attributes: Sequence[str]) -> dict[str, float]:
    """What a set of explanations is like, one number per name.

    `names_item`, `attribute_precision`, `attribute_recall`, `empty`, `words` (mean length), `repetition` (mean
    share of repeated word pairs), `distinct_2` (distinct among all word pairs), `usr` (unique sentence ratio, Li et
    al., CIKM 2020: distinct texts among all), and `div` (mean number of attributes that two texts share, ibid.; lower
    is more varied).

    Attributes are looked for outside the item's name, as whole words of any case. Precision and recall are of what a
    text says of its item, hence not of a sentence that begins with `prompts.READER` and says what the reader looks
    for: every attribute of the catalogue counts that is named, and the precise ones are the item's own.

    Args:
        items: N of them, which the texts are about.
        texts: N explanations; an empty one is one that failed.
        attributes: every attribute of the catalogue.
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
    return {
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


def _shared(named: Sequence[set[str]]) -> float:
    """Mean over pairs of texts of how many attributes both name, from how many texts name each."""
    number = len(named)
    counts: dict[str, int] = {}
    for attributes in named:
        for attribute in attributes:
            counts[attribute] = counts.get(attribute, 0) + 1
    return sum(n * (n - 1) for n in counts.values()) / max(1, number * (number - 1))


def measure_against(texts: Sequence[str], references: Sequence[str | None]) -> dict[str, list[float]]:
    """How near each text is to its reference, e.g. the user's review; NaN where there is none.

    `rouge_l` is the F1 of the longest common subsequence of words (Lin, 2004), `bleu_4` the smoothed BLEU-4 of
    the sentence (Papineni et al., 2002; Chen and Cherry, 2014, method 3), 0 to 100.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu

    scorer = RougeScorer(["rougeL"])
    found: dict[str, list[float]] = {"rouge_l": [], "bleu_4": []}
    for text, reference in zip(texts, references, strict=True):
        told = reference is not None
        found["rouge_l"].append(scorer.score(reference, text)["rougeL"].fmeasure if told else float("nan"))
        found["bleu_4"].append(sentence_bleu(text, [reference]).score if told else float("nan"))
    return found
