import importlib

import pytest
import torch
from recbole_scenarios import write_dataset

from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.trainer.checkpoint import Checkpoints
from recbole_dppmg.trainer.stock import prepare, train_stock
from recbole_dppmg.trainer.tracking import Tracker

EPOCHS = 8
OWN = {
    "LightGCN": {"embedding_size": 8},
    "BPR": {"embedding_size": 8, "train_neg_sample_args": {"distribution": "popularity", "sample_num": 1}},
    "MultiVAE": {"mlp_hidden_size": [8], "latent_dimension": 4, "train_neg_sample_args": None},  # counts its steps
    "SASRec": {"hidden_size": 8, "inner_size": 8, "stopping_step": 1},  # dropout; stops early
    "ItemKNN": {},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset()


def train(model, folder, kill=None):
    """Train in `folder`, from the newest checkpoint there; `kill` ends it in an epoch, before that epoch's checkpoint.
    What was found, the losses, and the weights of the best epoch."""
    keys = {"data_path": ".", "epochs": EPOCHS, "use_gpu": False, "stopping_step": 3, "state": "ERROR"} | OWN[model]
    config, tracker = DPPMGConfig(model, "few", config_dict=keys), Tracker()
    phase = Checkpoints(folder / "state", 0).of(f"beside.{model}")
    save = phase.save

    def fatal(step, *rest):
        if step == kill:
            raise KeyboardInterrupt
        save(step, *rest)

    phase.save = fatal
    found = train_stock(config, prepare(config), folder, tracker, phase, phase.load())
    (*_, newest) = sorted((folder / "checkpoints").glob("*.pth"), key=lambda path: path.stat().st_mtime)
    stored = importlib.import_module("recbole.trainer.trainer").torch.load(newest)
    return found, dict(tracker.history), stored["state_dict"]


@pytest.mark.parametrize(
    ("model", "kills"), [("LightGCN", (1,)), ("LightGCN", (EPOCHS,)), *((model, (2, 3)) for model in OWN)], ids=str
)
def test_it_goes_on_as_if_it_had_never_stopped(model, kills, tmp_path):
    found, losses, weights = train(model, tmp_path / "whole")
    hit = 0
    for kill in kills:
        try:
            train(model, tmp_path / "killed", kill)
        except KeyboardInterrupt:
            hit += 1
    assert hit == len(kills) or model == "ItemKNN"  # which has one epoch
    torch.manual_seed(123)  # what is restored counts, not what is drawn anew
    again, more, same = train(model, tmp_path / "killed")
    assert again == found and more == losses
    assert same.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, same[name]), name


def test_a_training_that_is_over_is_not_begun_again(tmp_path):
    found, losses, _ = train("LightGCN", tmp_path)
    step = Checkpoints(tmp_path / "state").of("beside.LightGCN").load().step
    assert train("LightGCN", tmp_path)[:2] == (found, losses)
    assert Checkpoints(tmp_path / "state").of("beside.LightGCN").load().step == step
