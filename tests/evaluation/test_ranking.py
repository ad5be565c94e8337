import pytest
import torch
from recbole.trainer import Trainer

from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.evaluation import ranking
from recbole_dppmg.evaluation.ranking import RankingTask, evaluate, hits, ranking_metrics


def test_metrics_by_hand():
    found = torch.tensor([[False, True, False], [True, False, True]])
    values = ranking_metrics(found, torch.tensor([1, 4]), topk=[2, 3])
    gain = [1.0, 0.6309297535714575, 0.5]
    assert values["recall@2"] == pytest.approx((1 + 1 / 4) / 2)
    assert values["precision@3"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert values["hit@2"] == 1
    assert values["mrr@3"] == pytest.approx((1 / 2 + 1) / 2)
    assert values["map@3"] == pytest.approx((1 / 2 + (1 + 2 / 3) / 3) / 2)
    assert values["ndcg@3"] == pytest.approx((gain[1] / 1 + (gain[0] + gain[2]) / sum(gain)) / 2)


def test_history_and_padding_are_never_ranked():
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.0]])
    task = RankingTask(torch.tensor([0]), ItemLists.of([[3]]), ItemLists.of([[1]]), 5)
    found = hits(lambda users: scores[users].clone(), task, 3)
    assert found.tolist() == [[False, True, False]]  # 2, 3, 4


def test_equal_to_recbole_on_all_its_top_k_metrics(trained, monkeypatch):
    data, trainer = trained
    expected = Trainer.evaluate(trainer, data.test, load_best_model=False)
    monkeypatch.setattr(ranking, "_BUDGET", 4 * data.dataset.item_num * 7)  # seven users a block
    found = trainer.evaluate(data.test, load_best_model=False)
    assert found.keys() == expected.keys()
    assert len(found) == 12
    assert max(found.values()) > 0
    for name, value in expected.items():
        assert round(found[name], 4) == pytest.approx(value, abs=1.01e-4), name


def test_a_perfect_ranking_scores_one(trained):
    data, _ = trained
    task = RankingTask.of(data.test)
    place = {user: row for row, user in enumerate(task.users.tolist())}

    def oracle(users):
        table = torch.zeros(len(users), task.n_items)
        return task.positives.take(torch.tensor([place[u] for u in users.tolist()])).mask_(table, 1.0)

    assert evaluate(oracle, task)["ndcg@10"] == pytest.approx(1)
