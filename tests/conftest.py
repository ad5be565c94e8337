"""Fixtures that more than one folder of tests uses."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A folder with a tiny RecBole dataset."""
    from preference_data import write_dataset

    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(tiny_path):
    """A `DPPMG` trained on the tiny dataset, with its data and its trainer."""
    from preference_data import prepare

    from recbole_dppmg.model.dppmg import DPPMG
    from recbole_dppmg.trainer.trainer import DPPMGTrainer

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_path)  # RecBole writes logs where it stands
        data = prepare(tiny_path)
        trainer = DPPMGTrainer(data.config, DPPMG(data.config, data.train.dataset))
        trainer.fit(data.train, data.valid)
    return data, trainer
