import sys

import torch
from preference_data import KINDS
from recbole.config import Config

from recbole_dppmg.data.dataset import DPPMGDataset
from recbole_dppmg.model.dppmg import DPPMG


def test_items_and_features_are_by_internal_id_and_shared_by_the_split(tiny_path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    keys = {
        "data_path": str(tiny_path),
        "checkpoint_dir": str(tmp_path),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "feature_cache": str(tmp_path / "features"),
        "gpu_id": "",
        "state": "ERROR",
    }
    dataset = DPPMGDataset(Config(model=DPPMG, dataset="tiny", config_dict=keys))
    parts = dataset.build()
    assert len(dataset.items) == dataset.item_num
    assert (dataset.items[0].id, dataset.items[0].text) == ("[PAD]", "")
    for row, item in enumerate(dataset.items[1:], start=1):
        assert dataset.id2token("item_id", row) == item.id
        assert item.title == f"Film {item.id}" and item.attributes == (KINDS[int(item.id) % 4],)
    features, present = parts[0].item_features("text")
    assert features.shape == (dataset.item_num, 384) and present.tolist() == [False] + [True] * (dataset.item_num - 1)
    assert parts[1].item_features("text")[0] is features
    kinds = torch.tensor([int(item.id) % 4 for item in dataset.items[1:]])
    cosine = features[1:] @ features[1:].T
    same = (kinds[:, None] == kinds).fill_diagonal_(False)
    assert cosine[same].mean() > cosine[~same].mean()
    assert not parts[0].item_features("image")[1].any()  # no images in this dataset
