import sys

import pytest
import torch
from preference_data import write_dataset
from recbole.config import Config
from recbole.data import data_preparation

from recbole_dppmg.data.dataset import DPPMGDataset
from recbole_dppmg.errors import ConfigError
from recbole_dppmg.model.dppmg import DPPMG

QUOTED = '"Best film ever", she said; None, NA and "unbalanced'


def dataset_of(folder, monkeypatch, **keys):
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    defaults = {
        "data_path": str(folder), "checkpoint_dir": str(folder), "gpu_id": "", "state": "ERROR",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
    }  # fmt: skip
    config = Config(model=DPPMG, dataset="tiny", config_dict=defaults | keys)
    return config, DPPMGDataset(config)


@pytest.fixture
def folder(tmp_path):
    """Every interaction has a text that names its user and item, but for some."""
    path = write_dataset(tmp_path) / "tiny" / "tiny.inter"
    header, *rows = path.read_text().splitlines()
    texts = [f"{user} on {item}" for user, item, _ in (row.split("\t") for row in rows)]
    texts[0], texts[1], texts[2] = QUOTED, "", "NA"
    path.write_text("\n".join([f"{header}\treview:token_seq", *map("\t".join, zip(rows, texts, strict=True))]) + "\n")
    return tmp_path


def test_reviews_follow_users_and_items_through_the_split(folder, monkeypatch):
    config, dataset = dataset_of(folder, monkeypatch, review_field="review", user_inter_num_interval="[5,inf)")
    lines = [row.split("\t") for row in (folder / "tiny" / "tiny.inter").read_text().splitlines()[1:]]
    written = {(user, item): text for user, item, _, text in lines}
    for part in data_preparation(config, dataset):
        pairs = torch.stack([part.dataset.inter_feat[name] for name in ("user_id", "item_id")], 1)
        found = dataset.reviews(pairs)
        tokens = [(dataset.id2token("user_id", u), dataset.id2token("item_id", i)) for u, i in pairs.tolist()]
        assert len(found) == len(pairs) > 0
        assert found == [written[pair] or None for pair in tokens]
    assert QUOTED in written.values() and "NA" in written.values()


def test_pairs_that_nobody_wrote_of(folder, monkeypatch):
    _, dataset = dataset_of(folder, monkeypatch, review_field="review")
    lines = [row.split("\t")[:2] for row in (folder / "tiny" / "tiny.inter").read_text().splitlines()[1:]]
    met = {(dataset.token2id("user_id", u), dataset.token2id("item_id", i)) for u, i in lines}
    unmet = [(1, item) for item in range(1, dataset.item_num) if (1, item) not in met]
    assert dataset.reviews(torch.tensor(unmet)) == [None] * len(unmet)


def test_without_a_field_there_are_none(folder, monkeypatch):
    assert dataset_of(folder, monkeypatch)[1].reviews(torch.tensor([[1, 1]])) is None


def test_a_column_that_is_not_there(folder, monkeypatch):
    _, dataset = dataset_of(folder, monkeypatch, review_field="opinion")
    with pytest.raises(ConfigError, match=r"review_field: column 'opinion' is not in .*tiny\.inter; it has: user_id"):
        dataset.reviews(torch.tensor([[1, 1]]))
