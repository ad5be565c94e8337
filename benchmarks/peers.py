"""The models that are compared: each is trained on a split and gives the scores of every item.

RecBole's models are trained by RecBole's own trainer and loaders, `implicit`'s by its own `fit`. Every model sees
the training interactions only, also when the test is ranked, and is chosen on the same validation part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import Split
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.evaluation.ranking import evaluate

Scores = Callable[[Tensor], Tensor]

#: Equal budgets: at most four settings per model, tried with the first seed, one kept by NDCG@20 on validation.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "Pop": [{}],
    "ItemKNN": [{"k": k, "shrink": s} for s in (0.0, 10.0) for k in (100, 400)],
    "EASE": [{"reg_weight": reg} for reg in (50.0, 100.0, 300.0, 1000.0)],
    "BPR": [{"learning_rate": lr, "weight_decay": decay} for decay in (0.0, 1e-5) for lr in (1e-3, 3e-3)],
    "LightGCN": [{"n_layers": n, "reg_weight": reg, "learning_rate": 2e-3} for reg in (1e-4, 1e-2) for n in (2, 3)],
    "NGCF": [{"learning_rate": lr, "reg_weight": reg} for reg in (1e-5, 1e-3) for lr in (1e-3, 3e-3)],
    "NCL": [
        {"num_clusters": 50, "ssl_reg": ssl, "proto_reg": proto, "learning_rate": 2e-3}
        for proto in (1e-7, 1e-6)
        for ssl in (1e-6, 1e-5)
    ],
    "SASRec": [
        {"hidden_dropout_prob": p, "attn_dropout_prob": p, "learning_rate": lr}
        for lr in (1e-3, 3e-3)
        for p in (0.2, 0.5)
    ],
    "implicit ALS": [{"regularization": reg, "alpha": a} for a in (1.0, 10.0) for reg in (1.0, 20.0)],
    "implicit BPR": [{"learning_rate": lr, "regularization": reg} for reg in (0.01, 0.05) for lr in (0.01, 0.05)],
    "DPPMG": [{"tau": 0.2}, {"tau": 0.15}, {"tau": 0.15, "recency": 10.0}, {"tau": 0.15, "recency": 20.0}],
}


@dataclass(frozen=True)
class Fitted:
    """A trained model's scores of every item, users int64 (B,) to float (B, I), with its own remarks."""

    scores: Scores
    notes: dict[str, Any]


def fit(name: str, split: Split, settings: dict[str, Any], seed: int) -> Fitted:
    """Train one model with one setting and seed."""
    if name.startswith("DPPMG"):
        return _dppmg(split, settings, seed)
    if name.startswith("implicit"):
        return _implicit(name, split, settings, seed)
    if name == "SASRec":
        return _sasrec(split, settings, seed)
    return _recbole(name, split, settings, seed)


def _config(name: str, split: Split, settings: dict[str, Any], seed: int, **keys: Any) -> DPPMGConfig:
    """The split's configuration for another model."""
    given = {k: v for k, v in split.config.external_config_dict.items() if k not in ("model", "dataset")}
    return DPPMGConfig(name, split.config.dataset, config_dict=given | keys | {"seed": seed + 1} | settings)


def _dppmg(split: Split, settings: dict[str, Any], seed: int) -> Fitted:
    from recbole_dppmg.model.dppmg import DPPMG
    from recbole_dppmg.trainer.preference import PreferencePhase, quantizer_health
    from recbole_dppmg.trainer.tracking import Tracker

    config = _config("DPPMG", split, settings, seed)
    model = DPPMG(config, split.train)
    valid = split.task("valid")
    result = PreferencePhase(model, config, Tracker()).fit(split.pairs, valid)
    notes: dict[str, Any] = {"epoch": result.epoch, "model": model}
    if model.modalities:
        health = quantizer_health(model)
        notes |= {
            f"lowest {kind}": min(value for name, value in health.items() if kind in name)
            for kind in ("utilization", "perplexity")
        }
        full, coarse = (
            evaluate(lambda users, q=q: model.scores(users, quantized=q), split.task("test"), (20,), ["ndcg"])
            for q in (False, True)
        )
        notes["kept"] = coarse["ndcg@20"] / full["ndcg@20"]
    return Fitted(model.scores, notes)


def _recbole(name: str, split: Split, settings: dict[str, Any], seed: int) -> Fitted:
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    with tempfile.TemporaryDirectory() as folder:
        config = _config(name, split, settings, seed, checkpoint_dir=folder)
        init_seed(config["seed"], True)
        train, valid, _ = data_preparation(config, create_dataset(config))
        init_seed(config["seed"], True)
        model = get_model(name)(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        trainer.fit(train, valid, saved=True, verbose=False)
        trainer.evaluate(valid, load_best_model=True)

    @torch.no_grad()
    def scores(users: Tensor) -> Tensor:
        table = model.full_sort_predict({model.USER_ID: users, "user_id": users})
        return torch.as_tensor(np.asarray(table.cpu()), dtype=torch.float32).view(len(users), -1).clone()

    model.eval()
    return Fitted(scores, {"epoch": len(trainer.train_loss_dict)})


def _sasrec(split: Split, settings: dict[str, Any], seed: int, length: int = 50, patience: int = 10) -> Fitted:
    """RecBole's SASRec: every training item from up to `length` before it, by a softmax over all items; users are
    ranked by their training sequence.

    RecBole splits sequences by their own targets, of which earlier test items are then known, and encodes one
    sequence per target. Here the model has the same training, validation and test items as all others, and the loss
    is taken at many positions of a sequence at once, as in arXiv 1808.09781: the later half of each window, so that
    a target has the same context as in ranking.
    """
    from recbole.data import create_dataset
    from recbole.model.sequential_recommender import SASRec
    from recbole.utils import init_seed

    config = _config("SASRec", split, settings, seed, MAX_ITEM_LIST_LENGTH=length)
    init_seed(config["seed"], True)
    model = SASRec(config, create_dataset(config))
    users, items = split.pairs
    order = torch.argsort(users, stable=True)
    users, items = users[order], items[order]
    first = torch.searchsorted(users, torch.arange(split.n_users + 1))
    inputs = (first.diff() - 1).clamp_min(0)  # all but the last item, which is a target only
    position, stride = torch.arange(length), length // 2

    def sequences(begins: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The last `length` items of each range, left-aligned, padded by 0, (B, length), and where in `items`."""
        begins = torch.maximum(begins, ends - length)
        place = begins.unsqueeze(1) + position
        return torch.where(place < ends.unsqueeze(1), items[place.clamp_max(len(items) - 1)], 0), place

    def windows() -> tuple[Tensor, Tensor]:
        """Sequences and the items to tell at each position, 0: none; the cuts are drawn anew each time."""
        cut = torch.randint(1, stride + 1, (split.n_users,))
        number = torch.where(inputs > 0, -(-(inputs - cut).clamp_min(0) // stride) + 1, 0)
        owner = torch.arange(split.n_users).repeat_interleave(number)
        nth = torch.arange(len(owner)) - (number.cumsum(0) - number)[owner]
        told = (cut[owner] + (nth - 1) * stride).clamp_min(0)  # by the windows before
        ends = torch.minimum(inputs[owner], cut[owner] + nth * stride)
        sequence, place = sequences(first[owner], first[owner] + ends)
        wanted = (sequence > 0) & (place >= (first[owner] + told).unsqueeze(1))
        return sequence, torch.where(wanted, items[(place + 1).clamp_max(len(items) - 1)], 0)

    def calculate_loss(sequence: Tensor, target: Tensor) -> Tensor:
        embedded = model.item_embedding(sequence) + model.position_embedding.weight
        hidden = model.dropout(model.LayerNorm(embedded))
        hidden = model.trm_encoder(hidden, model.get_attention_mask(sequence))[-1][target > 0]
        return model.loss_fct(hidden @ model.item_embedding.weight.T, target[target > 0])

    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    everyone, sizes = sequences(first[:-1], first[1:])[0], first.diff().clamp(1, length)

    @torch.no_grad()
    def scores(chosen: Tensor) -> Tensor:
        model.eval()
        return model.full_sort_predict({model.ITEM_SEQ: everyone[chosen], model.ITEM_SEQ_LEN: sizes[chosen]})

    best, waited, state, epoch = -1.0, 0, {}, 0
    valid = split.task("valid")
    while waited < patience:
        model.train()
        sequence, target = windows()
        for rows in torch.randperm(len(sequence)).split(128):
            loss = calculate_loss(sequence[rows], target[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        epoch += 1
        value = evaluate(scores, valid, (20,), ["ndcg"])["ndcg@20"]
        waited = 0 if value > best else waited + 1
        if not waited:
            best, state = value, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return Fitted(scores, {"epoch": epoch - waited})


def _implicit(name: str, split: Split, settings: dict[str, Any], seed: int) -> Fitted:
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    history = ItemLists.from_pairs(*split.pairs, split.n_users)
    matrix = csr_matrix(
        (np.ones(len(history.items), np.float32), history.items.numpy(), history.offsets.numpy()),
        (split.n_users, split.n_items),
    )
    common = {"factors": 64, "num_threads": 1, "random_state": seed + 1, "use_gpu": False} | settings
    if name == "implicit ALS":
        model = AlternatingLeastSquares(iterations=20, **common)
    else:
        model = BayesianPersonalizedRanking(iterations=200, **common)
    model.fit(matrix, show_progress=False)
    user, item = (torch.from_numpy(np.asarray(table)) for table in (model.user_factors, model.item_factors))
    return Fitted(lambda users: user[users] @ item.T, {})
