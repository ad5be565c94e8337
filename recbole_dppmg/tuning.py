"""The verb `tune`: search a model's keys by the validation metric, with optuna; the test set is never looked at.

Trials are kept in `{output_dir}/tuning.db`. The same command goes on with its study, also after a kill, and other
processes may join in. A trial that falls behind the others at the same epoch is ended.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recbole_dppmg import keys
from recbole_dppmg.artifacts import fingerprint, write_text
from recbole_dppmg.config import DPPMGConfig, resolved
from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.runs import set_threads
from recbole_dppmg.trainer.stock import best_on_validation

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

_TRIALS = 30
_STARTUP = 5  # trials before one may be ended early


def tune(argv: Sequence[str]) -> int:
    """Run trials until the study has `--trials` of them; write the best keys and tell how to use them.

    Args:
        argv: `--key=value` arguments of a run, `--trials=N`, and `--space=FILE`, a YAML file with the keys to search:
            `{low: 0, high: 1}`, with `log: true` or `step: 0.1` where it is wanted, or a list to choose from.

    Raises:
        ConfigError: an argument, the space, or a value from it cannot be used.
        DataError: the dataset cannot be used, or every trial diverged.
    """
    import optuna

    own = {"trials": str(_TRIALS), "space": ""}
    own |= {n: v for n, _, v in (a.removeprefix("--").partition("=") for a in argv) if n in own}
    rest = [a for a in argv if a.removeprefix("--").partition("=")[0] not in own]
    if not own["trials"].isdecimal() or not int(own["trials"]):
        raise ConfigError(f"--trials={own['trials']}: must be 1 or more")
    config = DPPMGConfig(argv=rest)
    space = read_space(own["space"] or f"tuning/{config['model']}.yaml")
    if fixed := [key for key in space if any(argument.startswith(f"--{key}=") for argument in rest)]:
        raise ConfigError(f"--{fixed[0]}: is in the space to search too; leave it out of one of the two")
    set_threads(config.settings.threads)
    folder = Path(config.settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settled = {key: value for key, value in resolved(config).items() if key not in {*space, "threads", "output_dir"}}
    name = f"{config['dataset']}-{config['model']}-{fingerprint(settled, space)}"
    storage = f"sqlite:///{(folder / 'tuning.db').resolve()}"
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction="maximize" if config["valid_metric_bigger"] else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP),
    )
    # seeded by what is known already, so that a study that is gone on with does not draw the same again
    study.sampler = optuna.samplers.TPESampler(seed=config["seed"] + len(study.trials))
    wanted = int(own["trials"])
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)
    before = len(study.get_trials(states=states))
    print(f"study {name}: {before} of {wanted} trials done; {', '.join(space)} by {config['valid_metric']}")
    if before < wanted:
        study.optimize(
            lambda trial: _run(trial, rest, space),
            catch=(DataError,),
            callbacks=[optuna.study.MaxTrialsCallback(wanted, states=states), _tell],
        )
    if not study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        raise DataError(f"study {name}: no trial came to its end; narrow the space, e.g. its learning rates")
    path = folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(dict(study.best_params), sort_keys=False))
    print(f"best: valid {config['valid_metric']} {study.best_value:.4f} in trial {study.best_trial.number}: {path}")
    files = [word.partition("=")[2] for word in rest if word.startswith("--config_files=")]
    others = [word for word in rest if not word.startswith("--config_files=")]
    print(f"train with it: {shlex.join(['run_dppmg.py', *others, '--config_files=' + ' '.join([*files, str(path)])])}")
    return 0


def read_space(file: str) -> dict[str, Any]:
    """The keys to search, from a file of yours or of ours under `properties/`.

    Raises:
        ConfigError: no such file, an unknown key, or an entry that is neither a range nor a list.
    """
    found = keys.read_yaml(file if Path(file).is_file() else keys.shipped(file))
    for key, entry in found.items():
        if isinstance(entry, list) and entry and all(isinstance(e, (str, int, float, type(None))) for e in entry):
            continue
        known = {"low", "high", "log", "step"}
        if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= known:
            raise ConfigError(f"{file}: key '{key}': give a list, or low and high, with log or step where wanted")
        low, high = entry["low"], entry["high"]
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (low, high)) or low > high:
            raise ConfigError(f"{file}: key '{key}': low and high are to be numbers, low first")
        if entry.get("log") and (low <= 0 or "step" in entry):
            raise ConfigError(f"{file}: key '{key}': log needs a low above 0, and no step")
    if not found:
        raise ConfigError(f"{file}: has no key to search")
    return found


def sample(trial: optuna.Trial, space: Mapping[str, Any]) -> dict[str, Any]:
    """A value for every key of the space."""
    values: dict[str, Any] = {}
    for key, entry in space.items():
        if isinstance(entry, list):
            values[key] = trial.suggest_categorical(key, entry)
            continue
        whole = isinstance(entry["low"], int) and isinstance(entry["high"], int)
        suggest: Callable = trial.suggest_int if whole else trial.suggest_float
        step = {"step": entry["step"]} if "step" in entry else {}
        values[key] = suggest(key, entry["low"], entry["high"], log=bool(entry.get("log")), **step)
    return values


def _run(trial: optuna.Trial, argv: Sequence[str], space: Mapping[str, Any]) -> float:
    import optuna

    config = DPPMGConfig(config_dict=sample(trial, space), argv=argv)

    def on_score(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    return best_on_validation(config, on_score)


def _tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    value = f" {trial.value:.4f}" if trial.value is not None else ""
    chosen = ", ".join(f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in trial.params.items())
    print(f"trial {trial.number}: {trial.state.name.lower()}{value}; {chosen}", flush=True)
