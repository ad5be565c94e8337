"""Where a run's numbers go: an in-memory history for the report, and MLflow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_dppmg.errors import DataError


class Tracker:
    """Histories of named values by step; with `database`, also an MLflow run in that SQLite file.

    MLflow refuses `@` in names, so `ndcg@10` is logged there as `ndcg_10`.
    """

    def __init__(self, database: Path | None = None, run_name: str = "", parameters: Mapping[str, Any] | None = None):
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._client = self._run_id = None
        if database is not None:
            self._start_mlflow(database, run_name, parameters or {})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record values of one step.

        Raises:
            DataError: a value is not finite; training that has diverged must not go on in silence.
        """
        for name, value in values.items():
            if value != value or value in (float("inf"), float("-inf")):
                raise DataError(f"{name} is {value} at step {step}: training diverged; lower the learning rate")
            self.history[name].append((step, float(value)))
        if self._client:
            self._log_mlflow(values, step)

    def first_last(self, name: str) -> tuple[float, float]:
        """Means of a history over the first and the last tenth of its steps (at least one)."""
        values = [value for _, value in self.history[name]]
        tenth = max(1, len(values) // 10)
        return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth

    def finish(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Log the final metrics and every file of the run's folder, and close the MLflow run."""
        if not self._client:
            return
        self._log_mlflow(metrics, 0)
        self._client.log_artifacts(self._run_id, str(folder))
        self._client.set_terminated(self._run_id)

    def fail(self) -> None:
        """Mark the MLflow run as failed."""
        if self._client:
            self._client.set_terminated(self._run_id, status="FAILED")

    def _start_mlflow(self, database: Path, run_name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        database.parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{database.resolve()}")
        experiment = self._client.get_experiment_by_name("recbole-dppmg")
        if experiment is None:
            artifacts = (database.parent / "mlartifacts").resolve().as_uri()
            experiment_id = self._client.create_experiment("recbole-dppmg", artifact_location=artifacts)
        else:
            experiment_id = experiment.experiment_id
        self._run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        rows = [Param(name, str(value)[:5000]) for name, value in parameters.items()]
        for start in range(0, len(rows), 100):
            self._client.log_batch(self._run_id, params=rows[start : start + 100])

    def _log_mlflow(self, values: Mapping[str, float], step: int) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name.replace("@", "_"), float(value), now, step) for name, value in values.items()]
        for start in range(0, len(rows), 1000):
            self._client.log_batch(self._run_id, metrics=rows[start : start + 1000])
