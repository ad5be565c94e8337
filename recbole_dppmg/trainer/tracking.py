"""Where a run's numbers go: an in-memory history for the report, and MLflow."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_dppmg.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

_EXPERIMENT = "recbole-dppmg"
_PARENT = "mlflow.parentRunId"
_FLUSH = 200


class Tracker:
    """Histories of named values by step; with `database`, also an MLflow run in that SQLite file, with a run inside it
    for each phase that logs values; with `writer`, also TensorBoard.

    Values are kept as they come, tensors included, and read out in groups, so that logging does not make
    a training step wait for its device. MLflow refuses `@` in names: `ndcg@10` is `ndcg_10` there.

    Args:
        writer: a `SummaryWriter`, or what else has its `add_scalar`.
    """

    def __init__(
        self,
        database: Path | None = None,
        run_name: str = "",
        parameters: Mapping[str, Any] | None = None,
        writer: SummaryWriter | None = None,
    ):
        self._history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._pending: list[tuple[str, float | Tensor, int, int]] = []
        self._writer = writer
        self._client = self._run_id = None
        self._phase, self._phase_id = "", None
        if database is not None:
            self._start_mlflow(database, run_name, parameters or {})

    def log(self, values: Mapping[str, float | Tensor], step: int) -> None:
        """Record the values of one step, numbers or scalar tensors."""
        now = int(time.time() * 1000)
        self._pending += [(n, v.detach() if hasattr(v, "detach") else v, step, now) for n, v in values.items()]
        if len(self._pending) >= _FLUSH:
            self.flush()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While this lasts, values by step belong to the phase: in MLflow, to a run of its name inside the run."""
        self.flush()
        self._phase, self._phase_id = name, None
        yield
        self.flush()
        if self._phase_id:
            self._client.set_terminated(self._phase_id)
        self._phase, self._phase_id = "", None

    @property
    def history(self) -> Mapping[str, list[tuple[int, float]]]:
        """name -> [(step, value), ...] in the order logged."""
        self.flush()
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
        self.flush()
        self._history.update({name: [tuple(row) for row in rows] for name, rows in stored.items()})

    def finish(self, folder: Path, metrics: Mapping[str, float], skip: str = "") -> None:
        """Log the final metrics, the bundle in the run's folder as a model, and every other file there but those in
        `skip`; then close the MLflow run."""
        self.flush()
        if self._client:
            from recbole_dppmg import mlflow_model

            now = int(time.time() * 1000)
            self._send(self._run_id, [(name, float(value), 0, now) for name, value in metrics.items()])
            for path in sorted(folder.iterdir()):
                if path.name == mlflow_model.NAME:
                    mlflow_model.log_bundle(self._client, self._run_id, path)
                elif path.is_dir() and path.name != skip:
                    self._client.log_artifacts(self._run_id, str(path), path.name)
                elif path.is_file():
                    self._client.log_artifact(self._run_id, str(path))
            self._client.set_terminated(self._run_id)

    def fail(self) -> None:
        """Mark the MLflow run, and the phase in it, as failed; nothing pending is read, since it may be what failed."""
        for run_id in filter(None, (self._phase_id, self._run_id)):
            self._client.set_terminated(run_id, status="FAILED")

    def flush(self) -> None:
        """Read out and pass on what was logged."""
        rows = [(name, float(value), step, now) for name, value, step, now in self._pending]
        self._pending = []
        for name, value, step, _ in rows:
            if not math.isfinite(value):
                raise DataError(f"{name} is {value} at step {step}: training diverged; lower its learning rate")
            self._history[name].append((step, value))
            if self._writer:
                self._writer.add_scalar(name, value, step)
        if self._writer:
            self._writer.flush()
        if self._client and rows:
            if self._phase and not self._phase_id:
                self._phase_id = self._run(self._phase, self._run_id)
            self._send(self._phase_id or self._run_id, rows)

    def _start_mlflow(self, database: Path, run_name: str, parameters: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        database.parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{database.resolve()}")
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        if experiment is None:
            artifacts = (database.parent / "mlartifacts").resolve().as_uri()
            self._experiment = self._client.create_experiment(_EXPERIMENT, artifact_location=artifacts)
        else:
            self._experiment = experiment.experiment_id
        self._run_id = self._run(run_name)
        rows = [Param(name, str(value)[:5000]) for name, value in parameters.items()]
        for start in range(0, len(rows), 100):
            self._client.log_batch(self._run_id, params=rows[start : start + 100])

    def _run(self, name: str, parent: str | None = None) -> str:
        """The id of the MLflow run of this name, inside another or not; one that is resumed goes on in its own."""
        wanted = f"attributes.run_name = '{name}'" + (f" and tags.`{_PARENT}` = '{parent}'" if parent else "")
        if known := self._client.search_runs([self._experiment], wanted, max_results=1):
            self._client.update_run(known[0].info.run_id, status="RUNNING")
            return known[0].info.run_id
        tags = {_PARENT: parent} if parent else {}
        return self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id

    def _send(self, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name.replace("@", "_"), value, now, step) for name, value, step, now in rows]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[start : start + 1000])
