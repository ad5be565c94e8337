import math

import pytest

from recbole_dppmg.evaluation.explanations import measure_against, measure_texts
from recbole_dppmg.types import Item

ITEMS = [
    Item("1", "Up", "", ("Animation", "Drama")),
    Item("2", "Horror Hotel", "", ("Horror",)),
    Item("3", "Emma", "", ("Romance",)),
]
TEXTS = ["Up is drama and horror.", "Horror Hotel is for you.", ""]
KINDS = ["Animation", "Drama", "Horror", "Romance", "War"]


def test_counts_by_hand():
    found = measure_texts(ITEMS, TEXTS, KINDS)
    assert found["names_item"] == pytest.approx(2 / 3)
    assert found["attribute_precision"] == 1 / 2  # drama of drama, horror; the hotel's own name is no claim
    assert found["attribute_recall"] == 1 / 4
    assert found["empty"] == pytest.approx(1 / 3)
    assert found["usr"] == 1
    assert found["words"] == pytest.approx(10 / 3)
    assert found["distinct_2"] == 1
    assert found["div"] == 0


def test_sameness_shows():
    found = measure_texts(ITEMS[:1] * 2, ["Up is drama."] * 2, KINDS)
    assert (found["usr"], found["div"], found["distinct_2"]) == (0.5, 1, 0.5)


def test_words_within_words_are_not_named():
    assert measure_texts(ITEMS[:1], ["Up is a warm dramatic tale."], KINDS)["attribute_precision"] == 0


def test_references():
    said = "a film about an old man"
    found = measure_against([said, said, said], [said, "nothing of it at all here", None])
    assert found["rouge_l"][0] == 1 and found["bleu_4"][0] == pytest.approx(100)
    assert found["rouge_l"][1] < 0.2 and found["bleu_4"][1] < 10
    assert math.isnan(found["rouge_l"][2]) and math.isnan(found["bleu_4"][2])


def test_references_by_hand():
    """Six words, of which four are in common in this order; precision 4/6, recall 4/5."""
    found = measure_against(["you will like this old film"], ["i like this old film"])
    assert found["rouge_l"][0] == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5))
    precisions = (4 / 6, 3 / 5, 2 / 4, 1 / 3)  # no brevity penalty: it is longer
    assert found["bleu_4"][0] == pytest.approx(100 * math.prod(precisions) ** 0.25)


def test_nothing_to_measure():
    assert measure_texts([], [], KINDS)["usr"] == 0


def test_what_is_said_of_the_reader_is_not_held_against_the_item():
    item = Item("1", "Up", "", ("Animation", "Drama"), 2009)
    of_reader = measure_texts([item], ["Up is Drama. You look for horror and war."], ["Animation", "Drama", "Horror"])
    of_item = measure_texts([item], ["Up is Drama, and Horror too."], ["Animation", "Drama", "Horror"])
    assert of_reader["attribute_precision"] == 1 and of_item["attribute_precision"] == 0.5
