import pytest
import torch

from recbole_dppmg.evaluation.identification import identify, retrieve, swap_gap
from recbole_dppmg.evaluation.statistics import interval, sign_test, with_intervals


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for n in range(200):
        values = torch.randn(60, generator=generator) + 3
        _, low, high = interval(values, n)
        held += low <= 3 <= high
    assert 178 <= held <= 199  # 95 % of 200 is 190; percentile intervals are a little narrow


def test_an_interval_is_of_the_mean_and_shrinks_with_more_values():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1))
    mean, low, high = interval(values)
    assert mean == pytest.approx(values.double().mean().item())
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.15)
    assert interval(values) == interval(values)
    assert interval(torch.tensor([2.0, float("nan")])) == (2, 2, 2)
    assert with_intervals({"x": torch.tensor([float("nan")])}) == {}


def test_sign_test():
    assert sign_test(torch.ones(10)) == pytest.approx(2**-10)
    assert sign_test(-torch.ones(10)) == 1
    assert sign_test(torch.zeros(10)) == 1


def groups(n, size, signal, seed=0):
    """Judge's scores where users and cards have offsets of their own, and a card appeals by `signal` to its user."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, size, size, generator=generator)
    user = 5 * torch.randn(n, size, 1, generator=generator)
    card = 5 * torch.randn(n, 1, size, generator=generator)
    return noise + user + card + signal * torch.eye(size)


def test_offsets_of_users_and_cards_do_not_matter():
    top1, rank = identify(groups(200, 20, 8.0))
    assert top1.mean() > 0.99 and rank.mean() < 1.02
    top1, rank = identify(groups(500, 20, 0.0))
    assert top1.mean() == pytest.approx(0.05, abs=0.01)
    assert rank.mean() == pytest.approx(10.5, abs=0.2)


def test_the_same_card_for_all_is_at_chance_exactly():
    scores = torch.randn(7, 20, 1).expand(7, 20, 20)
    top1, rank = identify(scores)
    assert torch.equal(top1, torch.full_like(top1, 0.05))
    assert torch.equal(rank, torch.full_like(rank, 10.5))
    assert swap_gap(scores).abs().max() < 1e-9


def test_a_card_for_somebody_else_is_not_taken_for_ones_own():
    scores = groups(100, 20, 8.0)
    swapped = scores[:, :, torch.arange(20).roll(1)]
    assert identify(swapped)[0].mean() < 0.01
    assert swap_gap(swapped).mean() < 0 < swap_gap(scores).mean()


def test_the_gap_is_own_less_the_mean_of_the_others():
    scores = groups(3, 5, 1.0)
    expected = scores[1, 2, 2] - (scores[1, 2].sum() - scores[1, 2, 2]) / 4
    assert swap_gap(scores)[1, 2].item() == pytest.approx(expected.item(), abs=1e-5)


def test_retrieval():
    queries = torch.nn.functional.normalize(torch.randn(3, 20, 64, generator=torch.Generator().manual_seed(2)), dim=-1)
    assert retrieve(queries, queries).mean() == 1
    assert retrieve(queries, queries[:, :1].expand(3, 20, 64)).mean() == pytest.approx(0.05)
