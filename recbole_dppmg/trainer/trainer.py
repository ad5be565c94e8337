"""RecBole's face of the training: `fit` and `evaluate` as its `Trainer` has them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from recbole.trainer import Trainer
from safetensors import safe_open

from recbole_dppmg.artifacts import load_tensors, save_tensors
from recbole_dppmg.config import DPPMGConfig, resolved
from recbole_dppmg.errors import BundleError, DataError
from recbole_dppmg.evaluation.ranking import METRICS, RankingTask, evaluate
from recbole_dppmg.keys import defaults, recbole_keys
from recbole_dppmg.model.dppmg import DPPMG
from recbole_dppmg.settings import Settings
from recbole_dppmg.trainer.checkpoint import Checkpoints
from recbole_dppmg.trainer.preference import PreferencePhase, PreferenceResult, quantizer_health
from recbole_dppmg.trainer.stock import prepare
from recbole_dppmg.trainer.tracking import Tracker

_CONFIG = "config"


class DPPMGTrainer(Trainer):
    """Trains DPPMG phase by phase and evaluates it with whole arrays; weights are stored as safetensors."""

    def __init__(self, config, model, tracker: Tracker | None = None, checkpoints: Checkpoints | None = None):
        super().__init__(config, model)
        self.saved_model_file = str(Path(self.saved_model_file).with_suffix(".safetensors"))
        self.tracker, self.checkpoints = tracker or Tracker(writer=self.tensorboard), checkpoints
        self.preference: PreferenceResult | None = None

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Train the preference model; returns the best validation score and metrics, as RecBole's does."""
        interactions = train_data.dataset.inter_feat
        pairs = torch.stack([interactions[self.model.USER_ID], interactions[self.model.ITEM_ID]])
        phase = PreferencePhase(self.model, self.config, self.tracker, self.checkpoints)
        self.preference = phase.fit(pairs, RankingTask.of(valid_data) if valid_data else None, callback_fn)
        self.tracker.flush()
        if saved:
            # with all it takes to build the model again, see `load_data_and_model`
            metadata = {_CONFIG: json.dumps(resolved(self.config))}
            save_tensors(self.saved_model_file, self.model.state_dict(), metadata)
        if not valid_data:
            return -1, None
        self.best_valid_score, self.best_valid_result = self.preference.score, self.preference.valid
        return self.best_valid_score, self.best_valid_result

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Ranking metrics by RecBole's names; other kinds of metrics take RecBole's own evaluator."""
        if not eval_data:
            return None
        if load_best_model:
            self.resume_checkpoint(model_file or self.saved_model_file)
        self.model.eval()
        names = [name.lower() for name in self.config["metrics"]]
        if not set(names) <= set(METRICS) or not hasattr(eval_data, "uid2positive_item"):
            return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        task = RankingTask.of(eval_data).to(self.model.device)
        return evaluate(self.model.scores, task, self.config["topk"], names)

    def resume_checkpoint(self, resume_file):
        """Load weights that `fit` stored."""
        self.model.load_state_dict(load_tensors(resume_file))

    @torch.no_grad()
    def quantizer_metrics(self, eval_data) -> dict[str, float]:
        """Health of the codes, and what ranking by quantized users keeps of ranking by continuous ones, as a
        fraction: `quantizer.kept.<metric>` of the whole score (the id channel is never quantized), and
        `quantizer.<modality>.kept.<metric>` of that modality's score alone."""
        self.model.eval()
        task, topk = RankingTask.of(eval_data).to(self.model.device), self.config["topk"]
        found = quantizer_health(self.model)
        for prefix, channels in {
            "quantizer": None,
            **{f"quantizer.{m}": (m,) for m in self.model.modalities},
        }.items():
            full, coarse = (
                evaluate(partial(self.model.scores, quantized=q, channels=channels), task, topk, ["ndcg", "recall"])
                for q in (False, True)
            )
            found |= {f"{prefix}.kept.{name}": coarse[name] / full[name] for name in full if full[name]}
        return found


def load_data_and_model(model_file: str | Path) -> tuple:
    """What RecBole's function of this name gives, of a checkpoint that `DPPMGTrainer.fit` has stored: configuration,
    model, dataset, and the loaders of training, validation and test. Nothing in the file is unpickled.

    Raises:
        BundleError: the file cannot be read, or is none of these.
        ConfigError, DataError: the dataset is not there any more, or has changed.
    """
    tensors = load_tensors(model_file)
    with safe_open(model_file, "pt") as file:
        stored = (file.metadata() or {}).get(_CONFIG)
    if stored is None:
        raise BundleError(f"{model_file}: has no configuration; give a checkpoint of a run, not a bundle's weights")
    known = {"model", "dataset", *Settings.model_fields, *recbole_keys(), *defaults("DPPMG", "")}
    # RecBole lets any key pass, and those of no meaning have none here
    config = DPPMGConfig(config_dict={key: value for key, value in json.loads(stored).items() if key in known})
    data = prepare(config)
    model = DPPMG(config, data.train.dataset).to(config["device"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(
            f"{model_file}: of other users, items or features than dataset '{config['dataset']}' has now; restore it, "
            "or train again"
        ) from error
    return config, model.eval(), *data
