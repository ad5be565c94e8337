"""Phase 1: training the preference model, whole arrays on the device, with early stopping."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from recbole_dppmg.data.sampling import shuffled_batches
from recbole_dppmg.evaluation.ranking import RankingTask, evaluate
from recbole_dppmg.model.codes import encode, health
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.progress import progress
from recbole_dppmg.trainer.checkpoint import Checkpoints
from recbole_dppmg.trainer.tracking import Tracker

logger = logging.getLogger(__name__)

_GRACE = 5  # epochs that the quantizer gets after its k-means before a state may be the best
_ROUNDS = 30  # passes over the final users in which the codebooks settle


@dataclass(frozen=True)
class PreferenceResult:
    """The best epoch, its validation metrics, and the quantizer's health by its metric names."""

    epoch: int
    score: float
    valid: dict[str, float]
    quantizer: dict[str, float] = field(default_factory=dict)


class PreferencePhase:
    """Trains a `DPPMG` by the keys `epochs`, `learning_rate`, `train_batch_size`, `eval_step`,
    `stopping_step`, `valid_metric`, `metrics`, `topk` and `seed` of a RecBole config."""

    name = "preference"

    def __init__(self, model: DPPMG, config, tracker: Tracker, checkpoints: Checkpoints | None = None):
        self.model, self.config, self.tracker = model, config, tracker
        self.checkpoints = (checkpoints or Checkpoints()).of(self.name)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"], fused=True)

    def fit(
        self, pairs: Tensor, valid: RankingTask | None, on_score: Callable[[int, float], None] | None = None
    ) -> PreferenceResult:
        """Train, and leave the model with its best weights on validation, in evaluation mode. Goes on from the
        newest checkpoint, if there is one; every epoch's draws follow from the seed and the epoch alone.

        Args:
            pairs: int64 (2, E), users and items of the training interactions.
            valid: None: train all epochs and keep the last.
            on_score: called with the epoch and the validation score after each evaluation.
        """
        config, metric = self.config, self.config["valid_metric"].lower()
        pairs = pairs.to(self.model.device)
        valid = valid.to(self.model.device) if valid else None
        start, best, waited, state = self._resume()
        if start is None:
            return best
        logger.info(
            "preference: up to %d epochs of %d interactions in batches of %d, channels %s",
            config["epochs"],
            pairs.shape[1],
            config["train_batch_size"],
            ", ".join(self.model.channels),
        )
        first = self.model.settings.quantizer_warmup + _GRACE if self.model.modalities else 0
        first = min(first, config["epochs"] - 1)
        bar = progress(range(start, config["epochs"]), self.name, unit="epoch")
        for epoch in bar:
            # what is known when an epoch begins, so that nothing of one is done twice
            if self.checkpoints.due():
                self._store(epoch, best, waited, state)
            self._epoch(pairs, epoch)
            if valid is None or (epoch + 1) % config["eval_step"]:
                continue
            found = self._evaluate(valid, epoch)
            bar.set_postfix_str(f"{metric} {found.score:.4f}", refresh=False)
            if on_score:
                on_score(epoch, found.score)
            if epoch < first:
                continue
            if found.score > best.score:
                best, waited = found, 0
                state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            else:
                waited += 1
                if waited >= config["stopping_step"]:
                    break
        bar.close()
        if state is not None:
            self.model.load_state_dict(state)
        self.model.eval()
        self._settle()
        self._store(config["epochs"], best, waited, None, whole=True)
        logger.info("preference: best epoch %d, valid %s %.4f", best.epoch, metric, best.score)
        return best

    def _store(
        self, epoch: int, best: PreferenceResult, waited: int, state: dict[str, Tensor] | None, whole: bool = False
    ) -> None:
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        weights |= {f"best.{name}": tensor for name, tensor in (state or {}).items()}
        training = {"optimizer": self.optimizer.state_dict(), "step": self.model.step, "whole": whole}
        training |= {"best": asdict(best), "waited": waited, "history": self.tracker.stored()}
        self.checkpoints.save(epoch, weights, training)

    def _resume(self) -> tuple[int | None, PreferenceResult, int, dict[str, Tensor] | None]:
        """The next epoch (None: the phase is over), the best one with its weights, and the epochs since then."""
        found = self.checkpoints.load()
        if found is None:
            return 0, PreferenceResult(-1, -torch.inf, {}), 0, None
        tables: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
        for name, tensor in found.weights.items():
            kind, _, own = name.partition(".")
            tables[kind][own] = tensor.to(self.model.device)
        training = found.training
        self.model.load_state_dict(tables["model"])
        self.model.step = training["step"]
        self.optimizer.load_state_dict(training["optimizer"])
        self.tracker.restore(training["history"])
        self.model.eval()
        best = PreferenceResult(**training["best"])
        return None if training["whole"] else found.step, best, training["waited"], tables["best"] or None

    def _epoch(self, pairs: Tensor, epoch: int) -> None:
        model = self.model.train()
        generator = torch.Generator(pairs.device).manual_seed(self.config["seed"] * 1_000_003 + epoch)
        sums: dict[str, Tensor] = {}
        batches = 0
        for users, items in shuffled_batches(pairs, self.config["train_batch_size"], generator):
            terms = model.losses(users, items)
            loss = torch.stack(list(terms.values())).sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            model.step += 1
            batches += 1
            for name, term in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0) + term.detach()
        self.tracker.log({f"{self.name}.{name}": total / batches for name, total in sums.items()}, epoch)

    @torch.no_grad()
    def _settle(self) -> None:
        known, encoded = self.model.history.sizes > 0, self.model.encoded()
        for modality, quantizer in self.model.quantizers.items():
            quantizer.settle(encoded.user[modality][known], _ROUNDS, self.config["seed"])

    def _evaluate(self, valid: RankingTask, epoch: int) -> PreferenceResult:
        self.model.eval()
        names = [name.lower() for name in self.config["metrics"]]
        values = evaluate(self.model.scores, valid, self.config["topk"], names)
        quantizer = quantizer_health(self.model) if self.model.quantizing else {}
        logged = {f"{self.name}.valid.{name}": value for name, value in values.items()}
        self.tracker.log(logged | quantizer, epoch)
        score = values[self.config["valid_metric"].lower()]
        return PreferenceResult(epoch, score if self.config["valid_metric_bigger"] else -score, values, quantizer)


@torch.no_grad()
def quantizer_health(model: DPPMG) -> dict[str, float]:
    """`quantizer.<modality>.utilization.<level>` and so on, over the users with training interactions."""
    known, result = model.history.sizes > 0, {}
    for modality in model.modalities:
        books = model.quantizers[modality].codebooks
        found = health(encode(model.encoded().user[modality][known], books), books.shape[1])
        result |= {f"quantizer.{modality}.{name}": value for name, value in found.items()}
    return result
