"""One dataset, split once, for every model that is compared."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import recbole_dppmg  # noqa: F401  (repairs RecBole as it is imported)
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.data.dataset import DPPMGDataset
from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.evaluation.ranking import RankingTask

TOPK = (10, 20)


@dataclass(frozen=True)
class Split:
    """A RecBole dataset after its filters: `train`, `valid`, `test` are the parts that RecBole makes of it.

    `pairs` int64 (2, E), users and items of training, each user's in order of time where the data has it.
    """

    config: DPPMGConfig
    train: DPPMGDataset
    valid: DPPMGDataset
    test: DPPMGDataset

    @property
    def pairs(self) -> Tensor:
        return pairs_of(self.train)

    @property
    def n_users(self) -> int:
        return self.train.user_num

    @property
    def n_items(self) -> int:
        return self.train.item_num

    def task(self, part: str, only: Tensor | None = None) -> RankingTask:
        """Every user with items in `valid` or `test`; what came before is history.

        Args:
            only: bool (I,), items that count as found; None: all.
        """
        before = [self.pairs] if part == "valid" else [self.pairs, pairs_of(self.valid)]
        wanted = pairs_of(getattr(self, part))
        if only is not None:
            wanted = wanted[:, only[wanted[1]]]
        history = ItemLists.from_pairs(*torch.cat(before, 1), self.n_users)
        positives = ItemLists.from_pairs(*wanted, self.n_users)
        users = (positives.sizes > 0).nonzero().squeeze(1)
        return RankingTask(users, positives.take(users), history.take(users), self.n_items)


def pairs_of(part: DPPMGDataset) -> Tensor:
    """Users and items of a part of the split, int64 (2, E)."""
    return torch.stack([part.inter_feat[part.uid_field], part.inter_feat[part.iid_field]])


def load(dataset: str, data_path: str, keys: dict[str, Any], model: str = "DPPMG") -> Split:
    """Read, filter and split a dataset as RecBole does under our defaults."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    keys = {"gpu_id": "", "state": "ERROR", "topk": list(TOPK), "show_progress": False} | keys
    config = DPPMGConfig(model, dataset, config_dict={"data_path": data_path} | keys)
    parts = DPPMGDataset(config).build()
    return Split(config, *parts)


def folder_of(data: str) -> tuple[str, str]:
    """A dataset's name and the folder above it: `ml-100k` is RecBole's own, anything else a folder."""
    path = Path(data)
    return (path.name, str(path.parent)) if path.is_dir() else (data, "dataset")
