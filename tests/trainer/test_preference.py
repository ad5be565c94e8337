import copy

import pytest
import torch
from preference_data import prepare
from recbole.trainer import Trainer

from recbole_dppmg.artifacts import load_tensors
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.model.quantizer import Quantizer
from recbole_dppmg.trainer.trainer import DPPMGTrainer


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # RecBole writes logs where it stands


def test_loss_falls(trained):
    loss = trained[1].tracker.first_last("preference.loss")
    assert loss["preference.loss.last"] < 0.95 * loss["preference.loss.first"]


def test_what_was_liked_lately_counts_more(trained, tiny_path):
    data, trainer = trained
    model = trainer.model
    assert model.recency == 5 and model.history.weights.max() == 1
    users, items = data.train.dataset.inter_feat["user_id"], data.train.dataset.inter_feat["item_id"]
    times = data.train.dataset.inter_feat["timestamp"]
    rows = (users == 5).nonzero().squeeze(1)
    latest = items[rows[times[rows].argmax()]]
    mine = model.history.take(torch.tensor([5]))
    assert mine.items[mine.weights.argmax()] == latest
    # a random split tells nothing about what comes next
    split = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}
    other = prepare(tiny_path, eval_args=split)
    assert DPPMG(other.config, other.train.dataset).history.weights is None


def test_items_that_nobody_liked_are_ranked_by_their_content(tiny_path):
    data = prepare(tiny_path, epochs=15)
    train = data.train.dataset
    new = torch.zeros(train.item_num, dtype=torch.bool)
    new[20:30] = True
    train.inter_feat = train.inter_feat[~new[train.inter_feat["item_id"]]]
    trainer = DPPMGTrainer(data.config, DPPMG(data.config, train))
    trainer.fit(data.train, data.valid, saved=False)
    model = trainer.model
    encoded = model.encoded()
    assert not model.item[new].any() and not model.bias[new].any()  # training left them alone
    torch.testing.assert_close(encoded.item["id"][new].norm(dim=1), torch.ones(10))
    kind = torch.tensor([0] + [int(token) % 4 for token in train.field2id_token["item_id"][1:]])
    taste = torch.tensor([0] + [int(token[1:]) % 4 for token in train.field2id_token["user_id"][1:]])
    scores = model.scores(torch.arange(1, train.user_num))[:, new]
    alike = kind[new] == taste[1:].unsqueeze(1)
    assert scores[alike].mean() > scores[~alike].mean() + scores.std() / 2


def test_ranking_beats_popularity(trained):
    data, trainer = trained
    from recbole_dppmg.evaluation.ranking import RankingTask, evaluate

    task = RankingTask.of(data.test)
    uses = torch.bincount(trainer.model.history.items, minlength=task.n_items).float()
    popular = evaluate(lambda users: uses.repeat(len(users), 1), task, (20,), ["ndcg"])["ndcg@20"]
    assert trainer.evaluate(data.test, load_best_model=False)["ndcg@20"] > 1.3 * popular


def test_codes_are_used_and_keep_the_ranking(trained):
    data, trainer = trained
    found = trainer.quantizer_metrics(data.test)
    for modality in ("text", "image"):
        for level in range(4):
            assert found[f"quantizer.{modality}.utilization.{level}"] >= 0.95
            assert found[f"quantizer.{modality}.perplexity.{level}"] >= 0.6
    assert found["quantizer.kept.ndcg@20"] >= 0.9
    assert found["quantizer.text.kept.ndcg@20"] >= 0.8


def test_codebooks_without_kmeans_and_reset_fail_the_same_check(tiny_path):
    data = prepare(tiny_path, epochs=12)
    model = DPPMG(data.config, data.train.dataset)
    for modality in model.modalities:
        model.quantizers[modality] = Quantizer(16, 4, 8, decay=0.97, kmeans=False, reset=False)
    trainer = DPPMGTrainer(data.config, model)
    trainer.fit(data.train, data.valid, saved=False)
    found = trainer.quantizer_metrics(data.test)
    health = {name: value for name, value in found.items() if ".utilization." in name or ".perplexity." in name}
    assert any(value < (0.95 if ".utilization." in name else 0.6) for name, value in health.items())


def test_stored_weights_come_back(trained, tiny_path):
    data, trainer = trained
    tensors = load_tensors(trainer.saved_model_file)
    assert tensors.keys() == trainer.model.state_dict().keys()
    assert not any("features" in name for name in tensors)  # frozen features are no weights
    fresh = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
    before = fresh.evaluate(data.test, load_best_model=False)
    after = fresh.evaluate(data.test, model_file=trainer.saved_model_file)
    assert after == trainer.evaluate(data.test, load_best_model=False) != before


def test_same_seed_same_weights_to_the_bit(tiny_path):
    states, scores = [], []
    for _ in range(2):
        torch.rand(3)  # other code's draws must not matter
        data = prepare(tiny_path, epochs=9)
        trainer = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
        scores.append(trainer.fit(data.train, data.valid, saved=False))
        states.append(trainer.model.state_dict())
    assert scores[0] == scores[1] and scores[0][0] > 0
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = prepare(tiny_path, epochs=1, seed=3)
    assert not torch.equal(DPPMG(other.config, other.train.dataset).item, states[0]["item"])


def test_the_best_epoch_is_kept_and_training_stops_early(tiny_path):
    data = prepare(tiny_path, epochs=200, stopping_step=4, learning_rate=0.05)
    seen = []
    trainer = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
    score, metrics = trainer.fit(
        data.train, data.valid, saved=False, callback_fn=lambda epoch, value: seen.append((epoch, value))
    )
    assert len(seen) < 200
    eligible = [value for epoch, value in seen if epoch >= 10]
    assert score == max(eligible) == metrics["ndcg@20"]
    again = trainer.evaluate(data.valid, load_best_model=False)
    assert again["ndcg@20"] == pytest.approx(score)


def test_it_trains_inside_recbole_s_own_trainer(tiny_path):
    data = prepare(
        tiny_path,
        epochs=8,
        train_neg_sample_args={"distribution": "uniform", "sample_num": 1, "dynamic": False, "alpha": 1.0},
    )
    model = DPPMG(data.config, data.train.dataset)
    trainer = Trainer(data.config, model)
    trainer.fit(data.train, data.valid, saved=False)
    losses = list(trainer.train_loss_dict.values())
    assert losses[-1] < losses[0]
    assert model.quantizing
    one = next(iter(data.test))[0]
    table = model.full_sort_predict(one).view(len(one), -1)
    user = one["user_id"][:1].repeat(table.shape[1])
    pairs = {"user_id": user, "item_id": torch.arange(table.shape[1])}
    torch.testing.assert_close(model.predict(pairs), table[0])
    copy.deepcopy(model)  # RecBole counts its operations on a copy


def test_a_large_catalogue_is_sampled(tiny_path):
    data = prepare(tiny_path, epochs=30, softmax_cells=256 * 30)
    trainer = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
    score, _ = trainer.fit(data.train, data.valid, saved=False)
    full = prepare(tiny_path, epochs=30)
    reference = DPPMGTrainer(full.config, DPPMG(full.config, full.train.dataset)).fit(
        full.train, full.valid, saved=False
    )
    assert score > 0.8 * reference[0]
