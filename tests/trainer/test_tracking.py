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


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_phases_are_runs_inside_the_run_and_tensorboard_has_their_values(tmp_path):
    from mlflow import MlflowClient
    from torch.utils.tensorboard import SummaryWriter

    def begin():
        return Tracker(tmp_path / "mlflow.db", "run-a", {"seed": 3}, SummaryWriter(str(tmp_path / "events")))

    tracker = begin()
    with tracker.phase("data"):
        pass  # it logs nothing: no run
    with tracker.phase("preference"):
        tracker.log({"loss": 2.0}, 0)
    with pytest.raises(KeyboardInterrupt), tracker.phase("reward"):
        tracker.log({"total": 1.0}, 0)
        tracker.flush()
        raise KeyboardInterrupt
    tracker.fail()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("recbole-dppmg").experiment_id

    def status():
        return {run.info.run_name: run.info.status for run in client.search_runs([experiment])}

    assert status() == {"run-a": "FAILED", "preference": "FINISHED", "reward": "FAILED"}
    tracker = begin()  # resumed: it goes on in the same runs
    with tracker.phase("reward"):
        tracker.log({"total": 2.0}, 1)
    tracker.finish(tmp_path / "events", {})
    assert status() == {"run-a": "FINISHED", "preference": "FINISHED", "reward": "FINISHED"}
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    for name in ("preference", "reward"):
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["run-a"].info.run_id
    assert [(m.step, m.value) for m in client.get_metric_history(runs["reward"].info.run_id, "total")] == [
        (0, 1),
        (1, 2),
    ]
    assert not client.get_metric_history(runs["run-a"].info.run_id, "total")
    assert events(tmp_path / "events") == {"loss": [(0, 2.0)], "total": [(0, 1.0), (1, 2.0)]}
