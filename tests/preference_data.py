"""A tiny real RecBole dataset: users of four tastes, items of four kinds, clock times."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.utils import init_seed

from recbole_dppmg.data.dataset import DPPMGDataset
from recbole_dppmg.model.dppmg import DPPMG

KINDS = ("Horror", "Romance", "Western", "Musical")
USERS, ITEMS, EACH = 90, 160, 14


class KindDataset(DPPMGDataset):
    """Features that tell an item's kind, with noise, instead of an encoder's; `modalities` says which."""

    modalities = ("text", "image")

    def item_features(self, modality):
        features = torch.zeros(self.item_num, 12)
        present = torch.zeros(self.item_num, dtype=torch.bool)
        if modality in self.modalities:
            seed = {"text": 1, "image": 2}[modality]
            noise = torch.randn(self.item_num, 12, generator=torch.Generator().manual_seed(seed))
            kinds = torch.tensor([0] + [int(t) % 4 for t in self.field2id_token[self.iid_field][1:]])
            features = torch.nn.functional.one_hot(kinds, 12).float() + 0.2 * noise
            present[1:] = True
            present[5:9] = False  # some items have no content
        return features, present


class Prepared(NamedTuple):
    config: Config
    dataset: DPPMGDataset
    train: object
    valid: object
    test: object


def write_dataset(folder: Path) -> Path:
    """`tiny.inter` and `tiny.item` under `folder/tiny`."""
    generator = torch.Generator().manual_seed(7)
    root = folder / "tiny"
    root.mkdir()
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    kinds = torch.arange(ITEMS) % 4
    for user in range(USERS):
        weight = torch.where(kinds == user % 4, 8.0, 1.0)
        chosen = torch.multinomial(weight, EACH, generator=generator)
        rows += [f"u{user}\t{item}\t{1000 + n}" for n, item in enumerate(chosen.tolist())]
    (root / "tiny.inter").write_text("\n".join(rows) + "\n")
    rows = ["item_id:token\ttitle:token\tgenres:token_seq"]
    rows += [f"{item}\tFilm {item} (19{60 + item % 40})\t{KINDS[item % 4]}" for item in range(ITEMS)]
    (root / "tiny.item").write_text("\n".join(rows) + "\n")
    return folder


def prepare(data_path: Path, modalities=("text", "image"), **keys) -> Prepared:
    """The dataset split 8:1:1 by time within each user."""
    defaults = {
        "data_path": str(data_path),
        "checkpoint_dir": str(data_path / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
        "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"],
        "topk": [10, 20],
        "valid_metric": "NDCG@20",
        "train_neg_sample_args": None,
        "gpu_id": "",
        "state": "ERROR",
        "embedding_size": 16,
        "train_batch_size": 256,
        "learning_rate": 0.01,
        "epochs": 30,
        "stopping_step": 30,
        "quantizer_warmup": 5,
        "quantizer_codes": 8,
        "knn_k": 4,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys.argv[:1])  # RecBole reads the command line
        config = Config(model=DPPMG, dataset="tiny", config_dict=defaults | keys)
    init_seed(config["seed"], True)
    kind = type("KindDataset", (KindDataset,), {"modalities": modalities})
    dataset = kind(config)
    return Prepared(config, dataset, *data_preparation(config, dataset))
