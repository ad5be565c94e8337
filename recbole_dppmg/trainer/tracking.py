"""Where a run's numbers go: an in-memory history for the report, and MLflow."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_dppmg.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_EXPERIMENT = "recbole-dppmg"
_FLUSH = 200


class Tracker:
    """Histories of named values by step; with `database`, also an MLflow run in that SQLite file.

    Values are kept as they come, tensors included, and read out in groups, so that logging does not make
    a training step wait for its device. MLflow refuses `@` in names: `ndcg@10` is `ndcg_10` there.
    """

    def __init__(self, database: Path | None = None, run_name: str = "", parameters: Mapping[str, Any] | None = None):
        self._history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._pending: list[tuple[str, float | Tensor, int, int]] = []
        self._client = self._run_id = None
        if database is not None:
            self._start_mlflow(database, run_name, parameters or {})

    def log(self, values: Mapping[str, float | Tensor], step: int) -> None:
        """Record the values of one step, numbers or scalar tensors."""
        now = int(time.time() * 1000)
        self._pending += [(n, v.detach() if hasattr(v, "detach") else v, step, now) for n, v in values.items()]
        if len(self._pending) >= _FLUSH:
            self._flush()

    @property
    def history(self) -> Mapping[str, list[tuple[int, float]]]:
        """name -> [(step, value), ...] in the order logged."""
        self._flush()
        return self._history

    def first_last(self, name: str) -> dict[str, float]:
        """`{name}.first` and `{name}.last`: means over the first and last tenth of the steps, at least one."""
        values = [value for _, value in self.history[name]]
        tenth = max(1, len(values) // 10)
        return {f"{name}.first": sum(values[:tenth]) / tenth, f"{name}.last": sum(values[-tenth:]) / tenth}

    def stored(self) -> dict[str, list[tuple[int, float]]]:
        """The history as plain values, for a checkpoint."""
        return {name: list(rows) for name, rows in self.history.items()}

    def restore(self, stored: Mapping[str, list[tuple[int, float]]]) -> None:
        """Take the history of a checkpoint for what it has, in place of what was logged since then."""
        self._flush()
        self._history.update({name: [tuple(row) for row in rows] for name, rows in stored.items()})

    def finish(self, folder: Path, metrics: Mapping[str, float], skip: str = "") -> None:
        """Log the final metrics and every file of the run's folder but those in `skip`, and close the MLflow run."""
        self._flush()
        if self._client:
            now = int(time.time() * 1000)
            self._send([(name, float(value), 0, now) for name, value in metrics.items()])
            for path in sorted(folder.iterdir()):
                if path.is_dir() and path.name != skip:
                    self._client.log_artifacts(self._run_id, str(path), path.name)
                elif path.is_file():
                    self._client.log_artifact(self._run_id, str(path))
            self._client.set_terminated(self._run_id)

    def fail(self) -> None:
        """Mark the MLflow run as failed; nothing pending is read, since it may be what failed."""
        if self._client:
            self._client.set_terminated(self._run_id, status="FAILED")

    def _flush(self) -> None:
        rows = [(name, float(value), step, now) for name, value, step, now in self._pending]
        self._pending = []
        for name, value, step, _ in rows:
            if not math.isfinite(value):
                raise DataError(f"{name} is {value} at step {step}: training diverged; lower its learning rate")
            self._history[name].append((step, value))
        if self._client:
            self._send(rows)

    def _start_mlflow(self, database: Path, run_name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        database.parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{database.resolve()}")
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        if experiment is None:
            artifacts = (database.parent / "mlartifacts").resolve().as_uri()
            experiment_id = self._client.create_experiment(_EXPERIMENT, artifact_location=artifacts)
        else:
            experiment_id = experiment.experiment_id
        # a run that is resumed goes on in its own
        name = f"attributes.run_name = '{run_name}'"
        if known := self._client.search_runs([experiment_id], name, max_results=1):
            self._run_id = known[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        self._run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        rows = [Param(name, str(value)[:5000]) for name, value in parameters.items()]
        for start in range(0, len(rows), 100):
            self._client.log_batch(self._run_id, params=rows[start : start + 100])

    def _send(self, rows: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name.replace("@", "_"), value, now, step) for name, value, step, now in rows]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + 1000])
