"""What is held out for validation and test reaches nothing that is trained: with other held-out items, all that
training reads and all that comes out of it stays the same, bit by bit."""

import random

import pytest
import torch
from preference_data import prepare, write_dataset

from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.pipeline import _pairs, _recent
from recbole_dppmg.trainer.stock import Data
from recbole_dppmg.trainer.trainer import DPPMGTrainer

HELD_OUT = 2  # of 14 interactions: 8:1:1 by time leaves 12 to train


def held_out_anew(folder, seed):
    """The tiny dataset with other items in every user's last interactions, at the end of the file, so that RecBole
    numbers users and items as before."""
    folder.mkdir()
    path = write_dataset(folder) / "tiny" / "tiny.inter"
    header, *rows = path.read_text().splitlines()
    by_user = {}
    for row in rows:
        by_user.setdefault(row.split("\t")[0], []).append(row.split("\t"))
    first = [row for own in by_user.values() for row in own[:-HELD_OUT]]
    items, draw, last = sorted({row[1] for row in first}), random.Random(seed), []
    for own in by_user.values():
        fresh = [item for item in items if item not in {row[1] for row in own[:-HELD_OUT]}]
        chosen = draw.sample(fresh, HELD_OUT)
        last += [[user, item, time] for (user, _, time), item in zip(own[-HELD_OUT:], chosen, strict=True)]
    path.write_text("\n".join([header, *("\t".join(row) for row in first + last)]) + "\n")
    return folder


def trained(folder, **keys):
    data = prepare(folder, epochs=8, eval_args=SPLIT, **keys)
    trainer = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
    trainer.fit(data.train, None, saved=False)
    return Data(data.dataset, data.train, data.valid, data.test), trainer.model


SPLIT = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"}


def pairs_of(loader):
    interactions = loader.dataset.inter_feat
    return set(zip(interactions["user_id"].tolist(), interactions["item_id"].tolist(), strict=True))


@pytest.mark.parametrize("cells", [2**23, 1000], ids=["all items", "sampled items"])
def test_held_out_items_change_nothing_that_is_learned(tmp_path, monkeypatch, cells):
    monkeypatch.chdir(tmp_path)
    (one, model), (other, again) = (trained(held_out_anew(tmp_path / str(n), n), softmax_cells=cells) for n in (1, 2))
    assert (model.negatives is not None) == (cells == 1000)
    assert list(one.dataset.field2id_token["item_id"]) == list(other.dataset.field2id_token["item_id"])
    for part in ("valid", "test"):
        assert len(pairs_of(getattr(one, part)) & pairs_of(getattr(other, part))) < 20  # they are other items
    # what training reads: graph, histories, negatives, and the pairs that generators are taught
    held = pairs_of(one.valid) | pairs_of(one.test)
    edges = torch.as_tensor(model.graph.edges)
    linked = {(u, i - model.n_users) for u, i in edges.T.tolist() if u < model.n_users}
    assert linked == pairs_of(one.train) and not linked & held
    assert torch.equal(_pairs(one), _pairs(other)) and not {tuple(pair) for pair in _pairs(one).tolist()} & held
    assert _recent(one) == _recent(other)
    for mine, theirs in zip(model.history, again.history, strict=True):
        assert torch.equal(mine, theirs)
    # and what comes of it
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    spaces = model.space(), again.space()
    for name, tensor in spaces[0].tensors().items():
        assert torch.equal(tensor, spaces[1].tensors()[name]), name
    glossaries = [build_glossary(space, data.dataset.items) for space, data in zip(spaces, (one, other), strict=True)]
    assert glossaries[0] == glossaries[1] and glossaries[0]


def test_the_test_sees_a_leak(tmp_path, monkeypatch):
    """With the held-out items in training, it is not the same any more."""
    monkeypatch.chdir(tmp_path)
    tables = []
    for n in (1, 2):
        data = prepare(held_out_anew(tmp_path / str(n), n), epochs=8, eval_args=SPLIT)
        model = DPPMG(data.config, data.dataset)  # the whole dataset
        tables.append(torch.as_tensor(model.graph.edges))
    assert tables[0].shape != tables[1].shape or not torch.equal(*tables)
