import pytest
import torch

from recbole_dppmg.errors import DataError
from recbole_dppmg.trainer.tracking import Tracker


def test_first_and_last_are_means_of_the_outer_tenths():
    tracker = Tracker()
    for step in range(30):
        tracker.log({"loss": torch.tensor(30.0 - step)}, step)
    assert tracker.first_last("loss") == {"loss.first": 29.0, "loss.last": 2.0}


def test_divergence_is_named():
    tracker = Tracker()
    tracker.log({"loss": float("nan")}, 7)
    with pytest.raises(DataError, match="loss is nan at step 7"):
        _ = tracker.history


def test_mlflow_holds_parameters_metrics_by_step_and_files(tmp_path):
    from mlflow import MlflowClient

    tracker = Tracker(tmp_path / "mlflow.db", "run-a", {"seed": 3})
    tracker.log({"ndcg@10": 0.5}, 0)
    tracker.log({"ndcg@10": 0.75}, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("x")
    tracker.finish(tmp_path / "out", {"ranking.test.ndcg@10": 0.8})

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("recbole-dppmg").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "3"
    assert run.data.metrics["ranking.test.ndcg_10"] == 0.8
    assert [m.value for m in client.get_metric_history(run.info.run_id, "ndcg_10")] == [0.5, 0.75]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["report.html"]
