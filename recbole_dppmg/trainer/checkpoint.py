"""Checkpoints: what a phase needs to go on, after any kind of end, as if it had never stopped.

A checkpoint is a folder that appears by one rename, complete and on the disk: `weights.safetensors`, `training.pt`
(optimizers, generators, histories; read with `weights_only=True`) and the checksums of both. The last two of each
phase are kept, so that one that was damaged later costs some steps and no more.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_dppmg.artifacts import atomic_path, check_manifest, load_tensors, save_tensors, write_manifest
from recbole_dppmg.errors import BundleError, StorageError
from recbole_dppmg.trainer.tracking import Tracker

logger = logging.getLogger(__name__)

_WEIGHTS, _TRAINING = "weights.safetensors", "training.pt"
_KEPT = 2
_STATES: dict[type, tuple[str, str]] = {torch.Generator: ("get_state", "set_state")}
_STATE_DICT = ("state_dict", "load_state_dict")


class Checkpoint(NamedTuple):
    """What was stored after `step` steps (or epochs)."""

    step: int
    weights: dict[str, Tensor]
    training: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, by phase.

    Args:
        folder: where they are; None: nothing is stored, and nothing is found.
        seconds: of work between two of them; 0: after every step.
    """

    def __init__(self, folder: Path | None = None, seconds: float = 20.0):
        self.folder, self.seconds = folder, seconds

    def of(self, phase: str) -> PhaseCheckpoints:
        """Those of one phase."""
        return PhaseCheckpoints(self.folder, phase, self.seconds)


class PhaseCheckpoints:
    """See `Checkpoints`."""

    def __init__(self, folder: Path | None, phase: str, seconds: float):
        self._folder, self._phase, self._seconds = folder, phase, seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next."""
        return self._folder is not None and time.monotonic() - self._last >= self._seconds

    def load(self) -> Checkpoint | None:
        """The newest that is whole; None: there is none. One that is damaged is told in a warning."""
        for path in reversed(self._stored()):
            try:
                check_manifest(path)
                weights = load_tensors(path / _WEIGHTS) if (path / _WEIGHTS).is_file() else {}
                training = torch.load(path / _TRAINING, weights_only=True)
            except (BundleError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("checkpoint %s is damaged (%s); taking the one before", path.name, error)
                continue
            step = int(path.name.rpartition("-")[2])
            logger.info("%s: going on after %d steps", self._phase, step)
            return Checkpoint(step, weights, training)
        return None

    def save(self, step: int, weights: Mapping[str, Tensor], training: Mapping[str, Any]) -> None:
        """Store a checkpoint, then drop all but the last two.

        Raises:
            StorageError: it cannot be written, e.g. as the disk is full; the last good ones are left.
        """
        if self._folder is None:
            return
        final = self._folder / f"{self._phase}-{step:09d}"
        scratch = final.with_name(f".{final.name}")
        try:
            for leftover in (scratch, final):
                shutil.rmtree(leftover, ignore_errors=True)
            scratch.mkdir(parents=True)
            if weights:  # safetensors does not read a file of none
                save_tensors(scratch / _WEIGHTS, weights)
            with atomic_path(scratch / _TRAINING) as path:
                torch.save(dict(training), path)
            write_manifest(scratch, packages=("torch",))
            _to_disk(scratch)
            scratch.rename(final)
            _to_disk(self._folder)
        except Exception as error:  # torch and safetensors have their own kinds for a full disk
            shutil.rmtree(scratch, ignore_errors=True)
            raise StorageError(
                f"{final}: the checkpoint cannot be written ({error}); make room on the disk, then go on with --resume"
            ) from error
        for old in self._stored()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()

    def _stored(self) -> list[Path]:
        if self._folder is None:
            return []
        return sorted(path for path in self._folder.glob(f"{self._phase}-*") if path.is_dir())


class Resumable:
    """The parameters of a phase with all that changes beside them, and its place in the run's checkpoints.

    Args:
        parameters: what is trained, always in the same order.
        parts: optimizers, schedulers and generators by name.
        extra: gives what else to store: tensors, numbers, text, and lists and dictionaries of them.
    """

    def __init__(
        self,
        checkpoints: PhaseCheckpoints,
        tracker: Tracker,
        parameters: Iterable[Tensor],
        parts: Mapping[str, Any],
        extra: Callable[[], Mapping[str, Any]] = dict,
    ):
        self._checkpoints, self._tracker, self._parts, self._extra = checkpoints, tracker, parts, extra
        self._parameters = {str(n): parameter for n, parameter in enumerate(parameters)}

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Put everything back as the newest checkpoint has it; returns the steps done, and what `extra` gave."""
        found = self._checkpoints.load()
        if found is None:
            return 0, {}
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(found.weights[name])
        for name, part in self._parts.items():
            getattr(part, _STATES.get(type(part), _STATE_DICT)[1])(found.training["parts"][name])
        self._tracker.restore(found.training["history"])
        return found.step, found.training["extra"]

    def after(self, step: int, last: bool) -> None:
        """Store a checkpoint after `step` steps if one is due, or it is the last."""
        if not (last or self._checkpoints.due()):
            return
        parts = {name: getattr(p, _STATES.get(type(p), _STATE_DICT)[0])() for name, p in self._parts.items()}
        training = {"parts": parts, "history": self._tracker.stored(), "extra": dict(self._extra())}
        self._checkpoints.save(step, self._parameters, training)


def _to_disk(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
