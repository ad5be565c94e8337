"""RecBole's own models through the command line, on today's stack."""

import json
from pathlib import Path

import pytest
from recbole_scenarios import write_dataset

from recbole_dppmg.cli import main
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.trainer.stock import prepare

OWN = {"NCL": ["--num_clusters=3", "--warm_up_step=1", "--m_step=1"], "SASRec": ["--hidden_size=8", "--inner_size=8"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        write_dataset()
    return found


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NGCF", "NCL", "ItemKNN", "EASE", "SASRec"])
def test_a_model_is_trained_evaluated_and_its_best_checkpoint_reloaded(model, folder, monkeypatch, capsys):
    from recbole.utils import get_model, get_trainer

    monkeypatch.chdir(folder)
    argv = [f"--model={model}", "--dataset=few", "--data_path=.", "--epochs=3", "--embedding_size=8", "--use_gpu=false"]
    argv = [a for a in argv if "embedding_size" not in a or model in ("BPR", "LightGCN", "NGCF", "NCL")] + OWN.get(
        model, []
    )
    assert main(argv) == 0
    report = Path(capsys.readouterr().out.strip().removeprefix("report: "))
    metrics = json.loads((report.parent / "metrics.json").read_text())

    config = DPPMGConfig(argv=argv)
    config["checkpoint_dir"] = str(report.parent / "checkpoints")
    data = prepare(config)
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, get_model(model)(config, data.train.dataset))
    (checkpoint,) = (report.parent / "checkpoints").glob(f"{model}-*.pth")
    found = trainer.evaluate(data.test, model_file=str(checkpoint))
    assert found
    for name, value in found.items():
        assert metrics[f"ranking.{model}.test.{name}"] == pytest.approx(float(value)), name
    assert 0 < metrics[f"ranking.{model}.test.recall@20"] <= 1
