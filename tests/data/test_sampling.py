import math

import pytest
import torch

from recbole_dppmg.data.lists import ItemLists, recency_weights
from recbole_dppmg.data.sampling import SharedNegatives, shuffled_batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_lists_keep_each_pair_once_in_order():
    lists = ItemLists.of([[3, 1, 3], [], [2]])
    assert lists.offsets.tolist() == [0, 2, 2, 3]
    assert lists.items.tolist() == [1, 3, 2]
    taken = lists.take(torch.tensor([2, 0, 0, 1]))
    assert taken.items.tolist() == [2, 1, 3, 1, 3]
    assert taken.sizes.tolist() == [1, 2, 2, 0]
    assert lists.mean(torch.eye(4)).tolist() == [[0, 0.5, 0, 0.5], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_later_items_count_more_and_repeated_ones_as_their_latest():
    lists = ItemLists.of([[4, 2, 4], [], [1, 3]], recency=2.0)
    assert lists.items.tolist() == [2, 4, 1, 3]
    e = 0.02 + 0.98 * math.exp(-0.5)
    assert lists.weights.tolist() == pytest.approx([e, 1, e, 1])
    assert lists.mean(torch.eye(5))[2].tolist() == pytest.approx([0, e / (1 + e), 0, 1 / (1 + e), 0])
    rows, times = torch.tensor([1, 0, 1]), torch.tensor([5.0, 1.0, 3.0])
    assert recency_weights(rows, times, 2.0).tolist() == pytest.approx([1, 1, e])


def test_batches_hold_every_interaction_once_in_a_seeded_order():
    pairs = torch.stack([torch.arange(10), torch.arange(10) + 100])
    batches = list(shuffled_batches(pairs, 4, generator()))
    assert [b.shape[1] for b in batches] == [4, 4, 2]
    joined = torch.cat(batches, 1)
    assert not torch.equal(joined, pairs)
    assert torch.equal(joined[1] - joined[0], torch.full((10,), 100))
    assert sorted(joined[0].tolist()) == list(range(10))
    assert torch.equal(joined, torch.cat(list(shuffled_batches(pairs, 4, generator())), 1))


def test_no_training_positive_and_no_padding_is_a_negative():
    positives = ItemLists.of([[], [1, 2, 3], [4], [5, 6, 7, 8]])
    negatives = SharedNegatives(positives, n_items=12, number=6, power=0.5)
    users = torch.tensor([1, 3, 2, 1])
    for seed in range(30):
        items, log_q, known = negatives.draw(users, generator(seed))
        assert len(items.unique()) == 6 and items.min() > 0
        assert (log_q <= 0).all()
        for row, user in enumerate(users.tolist()):
            own = set(positives.take(torch.tensor([user])).items.tolist())
            assert [item in own for item in items.tolist()] == known[row].tolist()


def test_negatives_follow_popularity_and_their_stated_chance():
    positives = ItemLists.from_pairs(torch.arange(64), torch.full((64,), 1), 64)  # item 1 is very popular
    popular = SharedNegatives(positives, n_items=21, number=5, power=1.0)
    uniform = SharedNegatives(positives, n_items=21, number=5, power=0.0)
    users = torch.tensor([0])
    seen = {"popular": 0, "uniform": 0}
    for seed in range(200):
        seen["popular"] += 1 in popular.draw(users, generator(seed))[0].tolist()
        seen["uniform"] += 1 in uniform.draw(users, generator(seed))[0].tolist()
    assert seen["popular"] > 190
    assert 25 < seen["uniform"] < 80  # a quarter of 200
    assert abs(uniform.log_q[1].exp() - 0.23) < 0.03
