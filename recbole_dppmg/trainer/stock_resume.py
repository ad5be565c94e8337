"""Going on with the training of a RecBole model after a kill, as if it had never stopped."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer

from recbole_dppmg.trainer.checkpoint import Checkpoint, PhaseCheckpoints

_PLAIN = (bool, int, float, str, type(None))


class StockResume:
    """The state of RecBole's plain `Trainer` between two epochs: weights now and at the best epoch, optimizer, early
    stopping, and every generator of random numbers that RecBole draws from.

    A trainer with rules of its own (NCL, knowledge graphs, ...) keeps more than can be known here: it is not stored,
    and begins anew.

    Args:
        trainer: before its `fit`; `resume` sets its state.
        loader: of the training interactions.
    """

    def __init__(self, trainer: Any, loader: Any, checkpoints: PhaseCheckpoints):
        self._trainer, self._loader, self._checkpoints = trainer, loader, checkpoints
        self._best: dict[str, Any] = {}

    @property
    def _able(self) -> bool:
        model = self._trainer.model
        extra = model.other_parameter().values()
        return (
            type(self._trainer) is Trainer
            and all(isinstance(value, (torch.Tensor, *_PLAIN)) for value in extra)
            and all(tensor.layout == torch.strided for tensor in model.state_dict().values())
        )

    def resume(self, found: Checkpoint | None) -> bool:
        """Go back to a checkpoint, with the file of the best epoch as it was; whether training is over."""
        if found is None or not self._able:
            return False
        trainer, stored = self._trainer, found.training
        tables: dict[str, dict[str, torch.Tensor]] = {"now": {}, "best": {}}
        for name, tensor in found.weights.items():
            when, _, own = name.partition(".")
            tables[when][own] = tensor
        self._best = {"weights": tables["best"], "other": stored["best.other"], "epoch": stored["best.epoch"]}
        trainer.optimizer.load_state_dict(stored["optimizer"])
        trainer.model.load_state_dict(tables["best"])
        trainer.model.load_other_parameter(stored["best.other"])
        for name in ("cur_step", "best_valid_score", "best_valid_result", "train_loss_dict"):
            setattr(trainer, name, stored[name])
        trainer._save_checkpoint(stored["best.epoch"], verbose=False)
        trainer.model.load_state_dict(tables["now"])
        for name, value in stored["model"].items():
            setattr(trainer.model, name, value)
        trainer.start_epoch = found.step
        random.setstate(stored["random"])
        kind, keys, *rest = stored["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(stored["torch"])
        self._loader.generator.set_state(stored["loader"])
        return found.step >= trainer.epochs or trainer.cur_step > trainer.stopping_step

    def after(self, epoch: int) -> None:
        """After an epoch's evaluation: keep it if it is the best, and store a checkpoint if one is due."""
        trainer = self._trainer
        if not self._able:
            return
        model = trainer.model
        if trainer.cur_step == 0:
            copied = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self._best = {"weights": copied, "other": model.other_parameter(), "epoch": epoch}
        if not self._best or not self._checkpoints.due():
            return
        weights = {f"now.{name}": tensor for name, tensor in model.state_dict().items()}
        weights |= {f"best.{name}": tensor for name, tensor in self._best["weights"].items()}
        kind, keys, *rest = np.random.get_state()
        training = {
            "optimizer": trainer.optimizer.state_dict(),
            "cur_step": trainer.cur_step,
            "best_valid_score": float(trainer.best_valid_score),
            "best_valid_result": {name: float(value) for name, value in trainer.best_valid_result.items()},
            "train_loss_dict": {n: float(loss) for n, loss in trainer.train_loss_dict.items()},
            "best.other": self._best["other"],
            "best.epoch": self._best["epoch"],
            "model": {name: value for name, value in vars(model).items() if isinstance(value, _PLAIN)},
            "random": random.getstate(),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "loader": self._loader.generator.get_state(),
        }
        self._checkpoints.save(epoch + 1, weights, training)
