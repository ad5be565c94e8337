"""The folder of one run: its log, its MLflow run, its metrics, and the link `latest` once it is whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_dppmg.artifacts import write_json, write_text
from recbole_dppmg.errors import ConfigError, DPPMGError, StorageError
from recbole_dppmg.progress import close_bars
from recbole_dppmg.trainer.checkpoint import Checkpoints
from recbole_dppmg.trainer.tracking import Tracker

logger = logging.getLogger(__name__)

LATEST = "latest"
#: What an unfinished run goes on from; gone when the run is whole.
STATE = "state"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INJECTED = "injected"  # a run's folder of heads as they were before the reward phase
_COLOUR = re.compile(r"\x1B\[[0-?]*[ -/]*[@-~]")
_CHATTY = ("alembic", "matplotlib", "PIL", "httpx", "mlflow")


class Run:
    """What a run writes to: `folder`, `tracker`, `checkpoints`, and `metrics`, the flat object that becomes
    `metrics.json`."""

    def __init__(self, folder: Path, tracker: Tracker, checkpoints: Checkpoints | None = None):
        self.folder, self.tracker, self.checkpoints = folder, tracker, checkpoints or Checkpoints()
        self.metrics: dict[str, float] = {}
        self._start = time.perf_counter()

    def stop_clock(self) -> None:
        """Set `time.total_s` to the seconds since the run began."""
        self.metrics["time.total_s"] = round(time.perf_counter() - self._start, 2)

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @contextlib.contextmanager
    def phase(self, name: str, plan: str) -> Iterator[Callable[[str], None]]:
        """Log what a phase will do and what it did, and its seconds as `time.<name>_s`.

        Yields a function that takes a few words on what was done.
        """
        logger.info("%s: %s", name, plan)
        done: list[str] = []
        start = time.perf_counter()
        with self.tracker.phase(name):
            yield done.append
        seconds = time.perf_counter() - start
        self.metrics[f"time.{name}_s"] = round(seconds, 2)
        logger.info("%s: done in %.1f s%s", name, seconds, "".join(f"; {words}" for words in done))

    def first_last(self, name: str) -> str:
        """Add `<name>.first` and `.last` to the metrics; returns them in words."""
        found = self.tracker.first_last(name)
        self.metrics |= found
        return f"{name} {found[f'{name}.first']:.4g} -> {found[f'{name}.last']:.4g}"


@contextlib.contextmanager
def open_run(
    root: Path, name: str, parameters: Mapping[str, Any], level: str = "INFO", resume: bool = False
) -> Iterator[Run]:
    """A new folder `root/<name>-<time>` with `config.yaml`, `log.txt` and `tensorboard/`, and an MLflow run in
    `root/mlflow.db`.

    At the end `metrics.json` is written, MLflow gets everything, and `root/latest` points to the folder. A run
    that fails or is interrupted keeps its log, is marked as failed in MLflow, and gets no link.

    Args:
        parameters: the configuration, written to `config.yaml` and to MLflow.
        level: of what is told on the console, as in RecBole's key `state`.
        resume: go on in the folder of the newest run of the same name and configuration that did not finish and is
            not running, if there is one.

    Raises:
        ConfigError: `root` cannot be written to.
        StorageError: the disk is full.
    """
    text = yaml.safe_dump(dict(parameters), sort_keys=False, allow_unicode=True)
    old = _unfinished(root, name, text) if resume else None
    folder = old or _new_folder(root, name)
    with (
        _locked(folder / STATE),
        _logging(folder / "log.txt", level),
        _terminate_as_interrupt(),
        SummaryWriter(str(folder / "tensorboard")) as writer,
    ):
        if resume:
            logger.info(
                "resume: %s", f"going on with {folder}" if old else f"nothing to go on with in {root}; a new run"
            )
        write_text(folder / "config.yaml", text)
        tracker = Tracker(root / "mlflow.db", folder.name, parameters, writer)
        run = Run(folder, tracker, Checkpoints(folder / STATE, parameters.get("checkpoint_seconds", 20.0)))
        try:
            yield run
            run.stop_clock()
            write_json(folder / "metrics.json", dict(sorted(run.metrics.items())))
            logger.info("run %s: done in %.0f s", run.id, run.metrics["time.total_s"])
            tracker.finish(folder, run.metrics, skip=STATE)
            shutil.rmtree(folder / STATE)
        except BaseException as error:
            close_bars()
            tracker.fail()
            logger.error(
                "run %s failed: %s",
                run.id,
                str(error) or type(error).__name__,
                exc_info=not isinstance(error, (DPPMGError, KeyboardInterrupt)),
            )
            if isinstance(error, OSError) and error.errno in _FULL:
                raise StorageError(
                    f"{error.filename or folder}: cannot be written ({error.strerror}); make room on the disk, then "
                    f"go on with --resume"
                ) from error
            raise
        _point(root / LATEST, folder)


def set_threads(wanted: int | None) -> int:
    """Use this many CPU threads; None: OMP_NUM_THREADS, else the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = wanted or (int(given) if given.isdecimal() and int(given) else cores)
    torch.set_num_threads(threads)
    return threads


def repeat_exactly(wanted: bool) -> None:
    """Sum in a fixed order, so that equal seeds give equal runs with several threads too: the backward of indexing
    adds in the order in which threads come otherwise."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)  # not every product on a GPU has a fixed order
    torch.utils.deterministic.fill_uninitialized_memory = False


def _unfinished(root: Path, name: str, configuration: str) -> Path | None:
    """The newest run that has a state, the same configuration, and no process."""
    for folder in sorted(root.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True):
        config = folder / "config.yaml"
        if not (folder / STATE).is_dir() or not config.is_file() or config.read_text("utf-8") != configuration:
            continue
        with contextlib.suppress(BlockingIOError), _locked(folder / STATE):
            return folder
    return None


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Hold a run's state while its process lives. Raises BlockingIOError if another one does."""
    state.mkdir(exist_ok=True)
    with open(state / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _new_folder(root: Path, name: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = root / f"{name}-{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not root.is_dir():
                raise ConfigError(f"output_dir: '{root}' is no folder; give another") from error
            continue
        except OSError as error:
            raise ConfigError(f"output_dir: '{root}' cannot be written to ({error.strerror}); give another") from error
        return folder
    raise ConfigError(f"output_dir: '{root}' has too many runs of this second")


def _point(link: Path, folder: Path) -> None:
    """Make `link` point to `folder` in one step."""
    new = link.with_name(f".{link.name}-{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name, target_is_directory=True)
    try:
        os.replace(new, link)
    except OSError:
        new.unlink()
        logger.warning("%s is in the way of the link to %s; move it", link, folder)


class _Console(logging.Handler):
    """Prints above the progress bars: our own lines, and warnings of others but for Python's own; what ends the run
    is told by whoever catches it."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.startswith("recbole_dppmg")
        return (ours or record.levelno >= logging.WARNING) and record.name != "py.warnings"

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            tqdm.write(_COLOUR.sub("", record.getMessage()), file=sys.stderr)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _COLOUR.sub("", super().format(record))


@contextlib.contextmanager
def _logging(path: Path, level: str) -> Iterator[None]:
    root, levels = logging.getLogger(), logging.getLevelNamesMapping()
    file, console = (
        logging.FileHandler(path, encoding="utf-8"),
        _Console(levels.get(str(level).upper(), logging.INFO)),
    )
    file.setFormatter(_Plain("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before, ours = root.level, [file, console]
    quiet = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in ours:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        for handler in ours:
            root.removeHandler(handler)
            handler.close()
        for name, previous in quiet.items():
            logging.getLogger(name).setLevel(previous)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A polite kill ends a run as Ctrl-C does, so that it is marked as failed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
