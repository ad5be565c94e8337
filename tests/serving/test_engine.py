"""Recommendations, tokens and search, without the web."""

import pytest
import torch

from recbole_dppmg.errors import DataError
from recbole_dppmg.serving.engine import UnknownItem, UnknownUser


def test_known_user_gets_the_best_unseen_items(engine):
    user = engine.bundle.user_ids[5]
    found = engine.recommend_user(user, 20)
    history = engine.bundle.space.history.items[
        engine.bundle.space.history.offsets[5] : engine.bundle.space.history.offsets[6]
    ]
    assert len(found.items) == 20 and found.scores == sorted(found.scores, reverse=True)
    assert not set(found.items) & {0, *history.tolist()}
    best = engine.bundle.space.recommend(torch.tensor([5]), 20)[0][0].tolist()
    assert found.items == best


def test_excluded_items_are_skipped_and_the_rest_moves_up(engine):
    user = engine.bundle.user_ids[5]
    before = engine.recommend_user(user, 5).items
    excluded = [engine.bundle.items[row].id for row in before[:2]]
    assert engine.recommend_user(user, 3, excluded).items == before[2:]


def test_fold_in_of_a_users_own_items_agrees_with_the_user(engine):
    row = 5
    _, recent = engine.recent(engine.bundle.user_ids[row])
    history = [engine.bundle.items[i].id for i in engine.bundle.recent[row]]
    folded = engine.recommend_history(history, 10)
    known = engine.recommend_user(engine.bundle.user_ids[row], 10)
    assert set(folded.items).isdisjoint(engine.bundle.recent[row]) and recent
    assert len(set(folded.items) & set(known.items)) >= 4  # chance is under one in ten
    assert set(folded.tokens) == set(known.tokens)


def test_someone_without_history_gets_the_average(engine):
    assert len(engine.recommend_history([], 10).items) == 10


def test_more_than_there_is_gives_what_there_is(engine):
    exclude = [item.id for item in engine.bundle.items[4:]]
    assert len(engine.recommend_history([], 100, exclude).items) == 3


def test_unknown_ids_are_named(engine):
    with pytest.raises(UnknownUser, match="'nobody'"):
        engine.recommend_user("nobody", 5)
    with pytest.raises(UnknownItem, match="'nothing'"):
        engine.recommend_history(["1", "nothing"], 5)


def test_equal_tokens_share_a_card_and_all_else_makes_another(engine):
    tokens = engine.tokens_of_user(engine.bundle.user_ids[3])
    order = engine.order("11", tokens, 0)
    assert engine.order("11", engine.checked_tokens({m: list(c) for m, c in tokens.items()}), 0).id == order.id
    other = {**tokens, "text": tuple((c + 1) % 8 for c in tokens["text"])}
    ids = {
        order.id,
        engine.order("12", tokens, 0).id,
        engine.order("11", tokens, 1).id,
        engine.order("11", other, 0).id,
    }
    assert len(ids) == 4


@pytest.mark.parametrize("tokens", [{}, {"text": [0, 0, 0, 0]}, {"text": [0] * 4, "image": [0, 0, 0, 99]},
                                    {"text": [0] * 4, "image": [0] * 3}])  # fmt: skip
def test_tokens_given_by_hand_are_checked(engine, tokens):
    with pytest.raises(DataError, match="tokens"):
        engine.checked_tokens(tokens)


def test_items_are_found_by_words_year_and_id(engine):
    titles = [engine.bundle.items[row].title for row in engine.search_items("film 12", 50)]
    assert titles[0].startswith("Film 12") and all("12" in title or "12" in str(title) for title in titles[:3])
    assert engine.bundle.items[engine.search_items("33", 5)[0]].id == "33"
    assert engine.search_items("no such words", 5) == []


def test_users_are_found_by_id(engine):
    assert engine.search_users("u1", 3)[0] == "u1"
    assert all("1" in user for user in engine.search_users("1", 20))
