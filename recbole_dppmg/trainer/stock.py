"""Training any recommender the way RecBole does, with everything it writes kept in one folder."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.progress import progress
from recbole_dppmg.trainer.checkpoint import Checkpoint, PhaseCheckpoints
from recbole_dppmg.trainer.stock_resume import StockResume
from recbole_dppmg.trainer.tracking import Tracker

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """A dataset and RecBole's loaders of its three parts."""

    dataset: Any
    train: Any
    valid: Any
    test: Any


def prepare(config) -> Data:
    """Read, filter, renumber and split the dataset, the same for every model with the same keys.

    Raises:
        DataError: RecBole cannot make a dataset of the files.
    """
    init_seed(config["seed"], config["reproducibility"])
    try:
        dataset = create_dataset(config)
        return Data(dataset, *data_preparation(config, dataset))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"dataset '{config['dataset']}' in {config['data_path']}: {error}") from error


def train_stock(
    config,
    data: Data,
    folder: Path,
    tracker: Tracker,
    checkpoints: PhaseCheckpoints,
    before: Checkpoint | None = None,
) -> dict[str, float]:
    """Train a RecBole model, take its best checkpoint back, and evaluate it.

    Args:
        folder: gets `checkpoints/` and `tensorboard/`.
        tracker: gets `<model>.loss` by epoch.
        checkpoints: get one now and then.
        before: what training goes on from.

    Returns:
        `valid.<metric>` and `test.<metric>`.

    Raises:
        ConfigError: RecBole refuses the model with these keys.
        DataError: the training diverged.
    """
    name = config["model"]
    config["checkpoint_dir"] = str(folder / "checkpoints")
    init_seed(config["seed"], config["reproducibility"])
    with in_folder(folder):
        trainer = _trainer(config, data)
        resumable = StockResume(trainer, data.train, checkpoints)
        over = resumable.resume(before)
        bar = progress(None, name, unit="epoch", total=trainer.epochs)

        def told(epoch: int, score: float) -> None:
            bar.set_postfix_str(f"{config['valid_metric'].lower()} {score:.4f}", refresh=False)
            bar.update(epoch + 1 - bar.n)
            resumable.after(epoch)

        with bar:
            try:
                if over:
                    trainer.eval_collector.data_collect(data.train)
                else:
                    trainer.fit(data.train, data.valid, verbose=False, show_progress=False, callback_fn=told)
            except ValueError as error:
                raise DataError(f"model {name}: {error}; lower its learning_rate") from error
    for epoch, loss in trainer.train_loss_dict.items():
        tracker.log({f"{name}.loss": float(loss)}, epoch)
    found = {}
    for part, loader in (("valid", data.valid), ("test", data.test)):
        found |= {f"{part}.{metric}": float(value) for metric, value in trainer.evaluate(loader).items()}
    return found


def best_on_validation(config, on_score: Callable[[int, float], None]) -> float:
    """Train any model, ours too, and return its best value of `valid_metric`; nothing is kept, and the test part is
    not evaluated.

    Args:
        on_score: called with the epoch and its value; what it raises ends the training.

    Raises:
        ConfigError: RecBole refuses the model with these keys.
        DataError: the dataset cannot be used, or the training diverged.
    """
    name, data = config["model"], prepare(config)
    init_seed(config["seed"], config["reproducibility"])
    with TemporaryDirectory() as scratch, in_folder(Path(scratch)):
        config["checkpoint_dir"] = scratch
        trainer = _trainer(config, data)
        try:
            score, _ = trainer.fit(
                data.train, data.valid, verbose=False, saved=False, show_progress=False, callback_fn=on_score
            )
        except ValueError as error:
            raise DataError(f"model {name}: {error}; lower its learning_rate") from error
    return float(score)


def _trainer(config, data: Data):
    name = config["model"]
    try:
        model = get_model(name)(config, data.train._dataset).to(config["device"])
        return get_trainer(config["MODEL_TYPE"], name)(config, model)
    except (ImportError, NotImplementedError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model {name}: RecBole cannot build it ({error})") from error


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """While this lasts, RecBole's trainers write their TensorBoard events to `folder` instead of where we stand."""
    from torch.utils.tensorboard import SummaryWriter

    module = importlib.import_module("recbole.trainer.trainer")
    original, writers = module.get_tensorboard, []

    def get_tensorboard(_logger) -> SummaryWriter:
        writers.append(SummaryWriter(str(folder / "tensorboard")))
        return writers[-1]

    module.get_tensorboard = get_tensorboard
    try:
        yield
    finally:
        module.get_tensorboard = original
        for writer in writers:
            writer.close()
