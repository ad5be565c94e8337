"""What RecBole 1.2 needs on today's stack, and how it finds DPPMG.

RecBole 1.2.0 was written for numpy 1, scipy 1.12, pandas 1 and torch 1. Every repair here is a function that
changes one RecBole module, right after that module has been imported (or at once, if it was imported before this
package). RecBole modules see numpy, scipy.sparse, pandas and torch through a `_View` that adds what they miss.

What changes for the rest of the process: one finder on `sys.meta_path`, which answers for modules of RecBole only.
numpy, scipy, pandas and torch are not touched: RecBole's `Config`, which sets `numpy.bool` and others for the whole
process, no longer does. While RecBole's `load_data_and_model` runs, `torch.load` trusts the one file that it was
given. A stand-in for ray exists while `recbole.quick_start` is being imported, and only if ray itself does not work.
"""

from __future__ import annotations

import csv
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

Repair = Callable[[ModuleType], None]

MODEL = "recbole.model.general_recommender.dppmg"
QUICK_START = "recbole.quick_start.quick_start"
_NO_NUMBER = ["", "NA", "N/A", "n/a", "nan", "NaN", "null", "NULL", "None", "none"]


class _View(ModuleType):
    """A module as one RecBole module sees it: the real one, but for the names given."""

    def __init__(self, real: ModuleType, **names: Any):
        super().__init__(real.__name__, real.__doc__)
        self.__dict__.update(names, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def numpy_names(module: ModuleType) -> None:
    """numpy 2 has no `float`, `str` and kin; RecBole's metrics, interactions and datasets use them."""
    module.np = _View(module.np, float=float, str=str)


def numpy_untouched(module: ModuleType) -> None:
    """Every `Config` sets old names on numpy itself, for the whole process, from names that numpy 2 has not."""
    module.Config.compatibility_settings = lambda self: None


def dok_update(module: ModuleType) -> None:
    """scipy 1.13 took `dok_matrix._update` away; LightGCN and others build their adjacency with it."""
    dok_matrix = module.sp.dok_matrix

    class Dok(dok_matrix):
        def _update(self, entries: dict) -> None:
            self._dict.update(entries)

    module.sp = _View(module.sp, dok_matrix=Dok)


def trusted_checkpoints(module: ModuleType) -> None:
    """torch 2.6 loads only plain tensors by default; RecBole's checkpoints hold its config, as pickle.

    Only the module's own calls are changed; they read files that RecBole itself has written.
    """
    module.torch = _View(module.torch, load=functools.partial(module.torch.load, weights_only=False))


def trusted_model_file(module: ModuleType) -> None:
    """The same for `load_data_and_model`, which imports torch by itself: while it runs, its own file is trusted."""
    original = module.load_data_and_model

    @functools.wraps(original)
    def load_data_and_model(model_file):
        import torch

        load = torch.load

        def trusting(file, *args, **kwargs):
            if file is model_file:
                kwargs["weights_only"] = False
            return load(file, *args, **kwargs)

        torch.load = trusting
        try:
            return original(model_file)
        finally:
            torch.load = load

    module.load_data_and_model = load_data_and_model


def dppmg_model_file(module: ModuleType) -> None:
    """Checkpoints of DPPMG are safetensors with the configuration as JSON; `torch.load` cannot read them."""
    original = module.load_data_and_model

    @functools.wraps(original)
    def load_data_and_model(model_file):
        if str(model_file).endswith(".safetensors"):
            return importlib.import_module("recbole_dppmg.trainer.trainer").load_data_and_model(model_file)
        return original(model_file)

    module.load_data_and_model = load_data_and_model


def no_anomaly_mode(module: ModuleType) -> None:
    """Importing any sequential model imports SINE, which looks for NaN in every gradient of the process from then on:
    SASRec trains for 1.4 times as long."""
    module.torch.autograd.set_detect_anomaly(False)


def plain_tables(module: ModuleType) -> None:
    """Datasets read tables as CSV files of other origin: a user or item called `NA`, `None` or `null` is taken for a
    missing one and all of its interactions are dropped, and a quote swallows the rest of the file. In atomic files
    only an empty cell of text is missing, and a quote is a character. Empty sequences are filled by
    `df[field].fillna(inplace=True)`, which copy-on-write (the only way in pandas 3) makes a no-op: filled here."""
    pandas = module.pd

    def read_csv(*args, dtype, **kwargs):
        missing = {name: [""] if kind is str else _NO_NUMBER for name, kind in dtype.items()}
        frame = pandas.read_csv(
            *args, dtype=dtype, na_values=missing, keep_default_na=False, quoting=csv.QUOTE_NONE, **kwargs
        )
        sequences = [name for name in frame.columns if str(name).endswith("_seq")]
        frame[sequences] = frame[sequences].fillna("")
        return frame

    module.pd = _View(pandas, read_csv=read_csv)


def filled_numbers(module: ModuleType) -> None:
    """The same for missing ids and numbers, silently left NaN; a column without any number is filled with 0."""
    original = module.Dataset._fill_nan
    token, number = module.FeatureType.TOKEN, module.FeatureType.FLOAT

    @functools.wraps(original)
    def _fill_nan(self):
        for name in self.feat_name_list:
            table = getattr(self, name)
            for field in table:
                if self.field2type[field] == token:
                    table[field] = table[field].fillna(0)
                elif self.field2type[field] == number:
                    table[field] = table[field].fillna(table[field].mean()).fillna(0.0)
        original(self)

    module.Dataset._fill_nan = _fill_nan


def dppmg_defaults(module: ModuleType) -> None:
    """RecBole reads defaults from its own folder only; DPPMG's are ours."""
    original = module.Config._load_internal_config_dict

    @functools.wraps(original)
    def _load_internal_config_dict(self, model, model_class, dataset):
        original(self, model, model_class, dataset)
        if model == "DPPMG":
            from recbole_dppmg.keys import defaults

            self.internal_config_dict.update(defaults(model, dataset))

    module.Config._load_internal_config_dict = _load_internal_config_dict


def dppmg_model(module: ModuleType) -> None:
    """`get_model("DPPMG")` looks for this module, which RecBole has not."""
    module.DPPMG = importlib.import_module("recbole_dppmg.model.dppmg").DPPMG


def _lazily(name: str, source: str) -> Repair:
    """The repair that gives a module the class `name`, imported from `source` when first asked for."""

    def repair(module: ModuleType) -> None:
        def __getattr__(wanted: str) -> Any:
            if wanted == name:
                return getattr(importlib.import_module(source), name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {wanted!r}")

        module.__getattr__ = __getattr__

    return repair


#: `get_trainer` and `create_dataset` look for these classes by name.
dppmg_trainer = _lazily("DPPMGTrainer", "recbole_dppmg.trainer.trainer")
dppmg_dataset = _lazily("DPPMGDataset", "recbole_dppmg.data.dataset")

_MODELS = "recbole.model.general_recommender"
REPAIRS: dict[str, tuple[Repair, ...]] = {
    "recbole.config.configurator": (numpy_untouched, dppmg_defaults),
    "recbole.evaluator.metrics": (numpy_names,),
    "recbole.data.interaction": (numpy_names,),
    "recbole.data.dataset": (dppmg_dataset,),
    "recbole.data.dataset.dataset": (numpy_names, plain_tables, filled_numbers),
    "recbole.trainer": (dppmg_trainer,),
    "recbole.trainer.trainer": (trusted_checkpoints,),
    "recbole.trainer.hyper_tuning": (numpy_names,),
    QUICK_START: (trusted_model_file, dppmg_model_file),
    MODEL: (dppmg_model,),
    **{f"{_MODELS}.{name}": (dok_update,) for name in ("lightgcn", "ngcf", "gcmc", "spectralcf", "ncl")},
    **{f"recbole.model.knowledge_aware_recommender.{name}": (dok_update,) for name in ("kgin", "mcclk")},
    **{f"{_MODELS}.{name}": (trusted_checkpoints,) for name in ("convncf", "nais", "neumf", "ract")},
    "recbole.model.context_aware_recommender.kd_dagfm": (trusted_checkpoints,),
    "recbole.model.sequential_recommender.s3rec": (trusted_checkpoints,),
    "recbole.model.sequential_recommender.sine": (no_anomaly_mode,),
}


@contextmanager
def ray_or_stand_in() -> Iterator[None]:
    """`recbole.quick_start` imports `ray.tune`, to report from a tuning session. Where ray is absent, or too old to
    be imported, `tune` is a stand-in that reports to nobody; `sys.modules` is then left as it was."""
    try:
        importlib.import_module("ray.tune")
    except Exception:  # an old ray fails in its own ways: AttributeError, pkg_resources, ...
        for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
            del sys.modules[name]
    else:
        yield
        return
    tune = ModuleType("ray.tune")
    tune.report = lambda **metrics: None
    ray = ModuleType("ray")
    ray.tune = tune
    sys.modules.update({"ray": ray, "ray.tune": tune})
    try:
        yield
    finally:
        del sys.modules["ray"], sys.modules["ray.tune"]


class _Empty(Loader):
    """Loads a module that RecBole has not; its repair fills it."""

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Finder(MetaPathFinder):
    """Finds the modules of RecBole that need a repair, and repairs each once it has run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in REPAIRS:
            return None
        spec = spec_from_loader(name, _Empty()) if name == MODEL else PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if name == QUICK_START:
                with ray_or_stand_in():
                    run(module)
            else:
                run(module)
            repair(name, module)

        spec.loader.exec_module = exec_module
        return spec


def repair(name: str, module: ModuleType) -> None:
    """Apply the repairs of a RecBole module to it."""
    for change in REPAIRS[name]:
        change(module)


def install() -> None:
    """Repair RecBole's modules as they are imported, and those that already are. A second call does nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in REPAIRS.keys() & sys.modules.keys():
        repair(name, sys.modules[name])
    package = sys.modules.get("recbole.quick_start")
    if package and QUICK_START in sys.modules:
        # the package keeps its own reference
        package.load_data_and_model = sys.modules[QUICK_START].load_data_and_model
