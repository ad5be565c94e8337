"""What a card holds; that its text and image are the heads' is tested with whole runs."""

import json
from types import SimpleNamespace

import pytest
import torch

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.evaluation.cards import choose_users, make_cards
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import ImageResult, TextResult


@pytest.fixture(scope="module")
def bundle(trained):
    data, trainer = trained
    ids = [str(token) for token in data.dataset.field2id_token["user_id"]]
    return Bundle(Settings(), 1, trainer.model.space(), data.dataset.items, ids, [[]] * len(ids), {}, {})


def test_users_are_drawn_by_seed_among_the_active(bundle):
    users = choose_users(bundle, 6, seed=4)
    assert users == choose_users(bundle, 6, seed=4) != choose_users(bundle, 6, seed=5)
    assert len(set(users)) == 6 and users == sorted(users)
    assert (bundle.space.history.sizes[users] >= 10).all()


def test_more_users_than_there_are_gives_all_of_them(bundle):
    users = choose_users(bundle, 1000, seed=0)
    assert sorted(users) == list(range(1, 91))


def test_cards_are_the_best_unseen_items_with_the_users_tokens(bundle, tmp_path):
    cards = make_cards(bundle, [3, 8], 4, tmp_path, seed=0)
    items, scores = bundle.space.recommend(torch.tensor([3, 8]), 4)
    assert [bundle.item_rows[card.item] for card in cards] == items.flatten().tolist()
    assert [card.score for card in cards] == pytest.approx(scores.flatten().tolist(), abs=1e-6)
    for card in cards:
        row = bundle.user_rows[card.user]
        assert not set(bundle.space.history.take(torch.tensor([row])).items.tolist()) & {bundle.item_rows[card.item]}
        codes = [int(name.strip("<>").split("_")[2]) for name in card.tokens["text"]]
        assert codes == bundle.space.user_codes["text"][row].tolist()
    lines = [json.loads(line) for line in (tmp_path / "cards.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["user", "item", "title", "score", "text", "image", "tokens", "scores", "error"]


def test_a_card_that_fails_says_why_and_the_others_are_made(bundle, tmp_path):
    """Heads that fail for one item: their own protocol, nothing of a generator's work."""
    from dataclasses import replace

    def fails_once(good, bad):
        return SimpleNamespace(generate=lambda batch: [bad if n == 1 else good for n, _ in enumerate(batch)])

    texts = fails_once(TextResult(""), TextResult("", "no words"))
    images = fails_once(ImageResult(None), ImageResult(None, "no picture"))
    cards = make_cards(replace(bundle, heads={"text": texts, "image": images}), [3], 3, tmp_path, seed=0)
    assert [card.error for card in cards] == [None, "no words; no picture", None]
