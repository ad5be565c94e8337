"""What RecBole is used for, once with all of `compat`'s repairs and once without the one under test.

Run as a program in an empty folder: imports what is slow, forks a process for each case, so that RecBole is new in
it, and prints {case: reason for failure, or null} as JSON. Arguments: parts of the names of the cases to run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

KEYS = {
    "data_path": ".",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
    "epochs": 1,
    "embedding_size": 8,
    "gpu_id": "",
    "show_progress": False,
    "state": "ERROR",
}


def write_dataset(name: str = "few") -> None:
    """20 users x 12 interactions; items with gaps in every kind of column, and one column without any number."""
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    rows += [f"u{user}\ti{(user * 5 + n * 7) % 30}\t{n}" for user in range(20) for n in range(12)]
    (folder / f"{name}.inter").write_text("\n".join(rows) + "\n")
    rows = ["item_id:token\tmaker:token\tprice:float\tweight:float\tgenres:token_seq\tsizes:float_seq"]
    rows += [
        f"i{item}\t{'m' * (item % 2)}\t{item if item % 3 else ''}\t\t\t{'1 2' if item % 4 else ''}"
        for item in range(30)
    ]
    (folder / f"{name}.item").write_text("\n".join(rows) + "\n")


def config(model: str = "BPR", **keys):
    from recbole.config import Config

    return Config(model, "few", config_dict=KEYS | keys)


def dataset(**keys):
    from recbole.data import create_dataset

    return create_dataset(config(**keys))


def metrics() -> None:
    import numpy as np

    ndcg = import_module("recbole.evaluator.metrics").NDCG({"topk": [2], "metric_decimal_place": 4})
    found = ndcg.metric_info(np.array([[True, False]]), np.array([1]))
    assert found.tolist() == [[1.0, 1.0]], found


def interactions() -> None:
    import numpy as np

    found = import_module("recbole.data.interaction").Interaction({"x": np.array([1.5, 2.0])})
    assert found["x"].tolist() == [1.5, 2.0], found


def tuning() -> None:
    import plotly.offline

    plotly.offline.plot = lambda figure, filename: None  # would open a browser
    tune = import_module("recbole.trainer.hyper_tuning").HyperTuning
    tune.plot_hyper(SimpleNamespace(score_list=[0.5], params_list=["a"], model="BPR", display_file=""))


def numpy_left_alone() -> None:
    import numpy as np

    before = set(dir(np))
    config()
    assert set(dir(np)) == before, set(dir(np)) ^ before


def adjacency(module: str) -> Callable[[], None]:
    """The graph of a model, by the method that builds it, on interactions of 2 users and 3 items."""

    def scenario() -> None:
        import scipy.sparse as sp

        matrix = sp.coo_matrix(([1.0, 1.0], ([0, 1], [2, 0])), shape=(2, 3), dtype="float32")
        it = SimpleNamespace(n_users=2, n_items=3, n_entities=3, interaction_matrix=matrix, inter_matrix=matrix)
        it.device = "cpu"
        loaded = import_module(f"recbole.model.{module}")
        model = next(getattr(loaded, name) for name in dir(loaded) if name.lower() == module.split(".")[1])
        it.get_eye_mat = lambda size: model.get_eye_mat(it, size)
        names = ("get_norm_adj_mat", "get_laplacian_matrix", "get_norm_inter_matrix")
        if module.startswith("knowledge"):
            found, _ = model.get_norm_inter_matrix(it, mode="bi")
        else:
            found = next(getattr(model, name) for name in names if hasattr(model, name))(it)
        dense = found.to_dense()
        assert dense[0, -1] != 0, dense
        assert dense[0, -3] == 0, dense

    return scenario


def pretrained(module: str) -> Callable[[], None]:
    """A checkpoint with a configuration in it, as RecBole writes, read the way the module does."""

    def scenario() -> None:
        import torch

        torch.save({"config": SimpleNamespace(a=1)}, "x.pth")
        assert import_module(f"recbole.{module}").torch.load("x.pth")["config"].a == 1
        with contextlib.suppress(Exception):
            torch.load("x.pth")
            raise SystemExit("torch.load trusts anything, everywhere")

    return scenario


def anomaly_mode() -> None:
    import torch

    import_module("recbole.model.sequential_recommender")
    assert not torch.is_anomaly_enabled()


def trained_and_reloaded() -> None:
    from recbole.data import data_preparation
    from recbole.utils import get_model, get_trainer

    keys = config(metrics=["Recall", "NDCG"], valid_metric="NDCG@10")
    train, valid, test = data_preparation(keys, import_module("recbole.data").create_dataset(keys))
    trainer = get_trainer(keys["MODEL_TYPE"], "BPR")(keys, get_model("BPR")(keys, train.dataset))
    trainer.fit(train, valid, verbose=False)
    assert trainer.evaluate(test)["recall@10"] > 0
    trainer.resume_checkpoint(trainer.saved_model_file)


def coverage_metrics() -> None:
    from recbole.data import data_preparation
    from recbole.utils import get_model, get_trainer

    names = ["ItemCoverage", "AveragePopularity", "GiniIndex", "TailPercentage", "ShannonEntropy"]
    keys = config(metrics=names, valid_metric="ItemCoverage@10")
    train, valid, _ = data_preparation(keys, import_module("recbole.data").create_dataset(keys))
    trainer = get_trainer(keys["MODEL_TYPE"], "Pop")(keys, get_model("Pop")(keys, train.dataset))
    trainer.fit(train, valid, verbose=False, saved=False)
    assert trainer.evaluate(valid, load_best_model=False)["itemcoverage@10"] > 0


def stored_and_loaded() -> None:
    """RecBole's own quick start, without ray, from training to `load_data_and_model`."""
    import torch

    load = torch.load
    quick_start = import_module("recbole.quick_start")
    assert "ray" not in sys.modules
    quick_start.run_recbole("BPR", "few", config_dict=KEYS)
    (file,) = Path("saved").glob("BPR-*.pth")
    _, model, *_ = quick_start.load_data_and_model(str(file))
    assert model.user_embedding.weight.shape == (21, 8)
    assert torch.load is load


def broken_ray() -> None:
    Path("ray").mkdir()
    Path("ray/__init__.py").write_text("import numpy\nnumpy.bool8\n")
    sys.path.insert(0, str(Path.cwd()))
    import_module("recbole.quick_start")
    assert "ray" not in sys.modules


def working_ray() -> None:
    Path("ray").mkdir()
    Path("ray/__init__.py").touch()
    Path("ray/tune.py").write_text("report = 'the real one'\n")
    sys.path.insert(0, str(Path.cwd()))
    assert import_module("recbole.quick_start.quick_start").tune.report == "the real one"
    assert "ray" in sys.modules


_ALL = {"inter": ["user_id", "item_id"], "item": ["item_id", "maker", "price", "weight", "genres", "sizes"]}


def gaps() -> None:
    """No NaN is left where a number, an id or a sequence is missing."""
    import numpy as np

    found = dataset(load_col=_ALL, normalize_all=False).item_feat
    prices = found["price"].to_numpy()[1:]  # row 0 is padding
    given = [item for item in range(30) if item % 3]
    assert not np.isnan(prices).any(), prices
    assert np.isclose(sorted(prices), sorted([*given, *[np.mean(given)] * 10])).all(), prices
    assert found["weight"].tolist() == [0.0] * 31, found["weight"]
    assert found["maker"].max() == 1, found["maker"]
    assert all(len(genres) == 0 for genres in found["genres"]), found["genres"]
    assert sorted(len(sizes) for sizes in found["sizes"]) == [0] * 9 + [2] * 22, found["sizes"]


def gaps_with_copy_on_write() -> None:
    import pandas as pd

    pd.set_option("mode.copy_on_write", True)  # the only way in pandas 3
    gaps()


def our_defaults() -> None:
    assert config("DPPMG")["quantizer_levels"] == 4
    assert config("BPR")["quantizer_levels"] is None


def our_model() -> None:
    from recbole.utils import get_model

    assert get_model("DPPMG").__module__ == "recbole_dppmg.model.dppmg"


def our_trainer() -> None:
    from recbole.utils import ModelType, get_trainer

    assert get_trainer(ModelType.GENERAL, "DPPMG").__name__ == "DPPMGTrainer"
    assert get_trainer(ModelType.GENERAL, "BPR").__name__ == "Trainer"


def our_dataset() -> None:
    assert type(dataset(model="DPPMG")).__name__ == "DPPMGDataset"
    assert type(dataset()).__name__ == "Dataset"


def run_dppmg() -> None:
    """RecBole's own `run_recbole` finds DPPMG with everything that belongs to it, given features for its items, and
    `load_data_and_model` gives it back."""
    import numpy as np
    import torch

    ids = [f"i{item}" for item in range(30)]
    np.save("few/text.npy", np.random.default_rng(0).normal(size=(30, 6)).astype("float32"))
    Path("few/rows.csv").write_text("item_id,row\n" + "".join(f"{item},{row}\n" for row, item in enumerate(ids)))
    keys = {"text_features": "text.npy", "feature_index": "rows.csv", "train_neg_sample_args": None, "epochs": 2}
    keys |= {"quantizer_warmup": 1, "quantizer_codes": 4, "knn_k": 3}
    found = import_module("recbole.quick_start").run_recbole("DPPMG", "few", config_dict=KEYS | keys)
    assert 0 < found["test_result"]["recall@10"] <= 1, found
    (file,) = Path("saved").glob("DPPMG-*.safetensors")
    assert list(Path("log_tensorboard").rglob("events*"))
    config, model, data, train, valid, test = import_module("recbole.quick_start").load_data_and_model(str(file))
    assert (config["epochs"], config["text_features"], type(data).__name__) == (2, "text.npy", "DPPMGDataset")
    trainer = import_module("recbole.utils").get_trainer(config["MODEL_TYPE"], "DPPMG")(config, model)
    again = trainer.evaluate(test, load_best_model=False)
    assert again == found["test_result"], (again, found)
    assert trainer.evaluate(valid, model_file=str(file)) == found["best_valid_result"]
    topk = import_module("recbole.utils.case_study").full_sort_topk
    _, items = topk(torch.arange(1, 4).numpy(), model, test, k=5, device=config["device"])
    assert items.shape == (3, 5) and len(train) > 0


def imported_before() -> None:
    """Modules of RecBole that were imported before the package are repaired too."""
    modules = (
        "evaluator.metrics",
        "data.interaction",
        "trainer.trainer",
        "data.dataset.dataset",
        "config.configurator",
    )
    assert not any(name.startswith("recbole_dppmg") for name in sys.modules)
    for name in (*modules, "trainer.hyper_tuning", "model.general_recommender.lightgcn"):
        import_module(f"recbole.{name}")
    import recbole_dppmg  # noqa: F401

    for scenario in (metrics, interactions, tuning, adjacency("general_recommender.lightgcn"), gaps, numpy_left_alone,
                     trained_and_reloaded, our_model, our_trainer, our_dataset, our_defaults):  # fmt: skip
        scenario()


def nothing_else_changed() -> None:
    """Another library's view of numpy, scipy, pandas, torch and yaml is the same after a whole run."""
    import pandas as pd
    import scipy.sparse as sp
    import torch
    import yaml

    def state():
        classes = (pd.DataFrame, pd.Series, sp.dok_matrix, torch.Tensor, yaml.SafeLoader)
        modules = [sys.modules[name] for name in ("numpy", "pandas", "scipy.sparse", "torch")]
        found = {
            part.__name__: {n: id(v) for n, v in vars(part).items() if n[0] != "_"} for part in (*classes, *modules)
        }
        # submodules that have been imported meanwhile are attributes of their package
        return {
            owner: {n: v for n, v in names.items() if f"{owner}.{n}" not in sys.modules}
            for owner, names in found.items()
        }

    def resolvers():
        return {first: list(found) for first, found in yaml.FullLoader.yaml_implicit_resolvers.items()}

    numbers = resolvers()
    for name in ("torch._dynamo", "torch.utils.tensorboard", "sklearn"):
        import_module(name)
    before = state()
    from recbole_dppmg.config import DPPMGConfig

    DPPMGConfig("BPR", "few", config_dict=KEYS)
    assert resolvers() == numbers  # RecBole's own Config adds to them
    stored_and_loaded()
    gaps()
    for owner, names in before.items():
        now = state()[owner]
        changed = {name for name in names.keys() | now.keys() if names.get(name) != now.get(name)}
        assert not changed, (owner, changed)


_GENERAL, _KNOWLEDGE = "general_recommender", "knowledge_aware_recommender"
_GRAPHS = [f"{_GENERAL}.{m}" for m in ("lightgcn", "ngcf", "gcmc", "spectralcf", "ncl")]
_GRAPHS += [f"{_KNOWLEDGE}.{m}" for m in ("kgin", "mcclk")]
_PRETRAINED = [f"{_GENERAL}.{m}" for m in ("convncf", "nais", "neumf", "ract")]
_PRETRAINED += ["context_aware_recommender.kd_dagfm", "sequential_recommender.s3rec"]
#: (module of RecBole, name of the repair): a scenario that needs it
SCENARIOS: dict[tuple[str, str], Callable[[], None]] = {
    ("evaluator.metrics", "numpy_names"): metrics,
    ("data.interaction", "numpy_names"): interactions,
    ("data.dataset.dataset", "numpy_names"): gaps,
    ("trainer.hyper_tuning", "numpy_names"): tuning,
    ("config.configurator", "numpy_untouched"): numpy_left_alone,
    ("config.configurator", "dppmg_defaults"): our_defaults,
    ("data.dataset.dataset", "plain_tables"): gaps_with_copy_on_write,
    ("data.dataset.dataset", "filled_numbers"): gaps,
    ("trainer.trainer", "trusted_checkpoints"): trained_and_reloaded,
    ("quick_start.quick_start", "trusted_model_file"): stored_and_loaded,
    ("quick_start.quick_start", "dppmg_model_file"): run_dppmg,
    (f"model.{_GENERAL}.dppmg", "dppmg_model"): our_model,
    ("trainer", "dppmg_trainer"): our_trainer,
    ("data.dataset", "dppmg_dataset"): our_dataset,
    ("model.sequential_recommender.sine", "no_anomaly_mode"): anomaly_mode,
    **{(f"model.{m}", "dok_update"): adjacency(m) for m in _GRAPHS},
    **{(f"model.{m}", "trusted_checkpoints"): pretrained(f"model.{m}") for m in _PRETRAINED},
}
#: scenarios without a repair to leave out
OTHERS = (broken_ray, working_ray, coverage_metrics, nothing_else_changed)


def without(module: str, repair: str) -> None:
    from recbole_dppmg import compat

    name = f"recbole.{module}"
    kept = tuple(change for change in compat.REPAIRS[name] if change is not getattr(compat, repair))
    assert len(kept) == len(compat.REPAIRS[name]) - 1, (name, repair)
    compat.REPAIRS[name] = kept


def without_stand_in() -> None:
    from recbole_dppmg import compat

    compat.ray_or_stand_in = contextlib.nullcontext


def cases() -> dict[str, list[Callable[[], None]]]:
    """Every case by name: what is done, one after the other, in a process of its own."""

    def package():
        import_module("recbole_dppmg")

    found = {}
    for (module, repair), scenario in SCENARIOS.items():
        found[f"{module} {repair} with"] = [package, scenario]
        found[f"{module} {repair} without"] = [package, lambda m=module, r=repair: without(m, r), scenario]
    found["ray with"] = [package, stored_and_loaded]
    found["ray without"] = [package, without_stand_in, stored_and_loaded]
    found |= {scenario.__name__: [package, scenario] for scenario in OTHERS}
    return found | {"imported_before": [imported_before]}


def main() -> None:
    wanted = sys.argv[1:]
    # what a process shares with those forked from it; RecBole and the package are not among it
    for name in (
        "numpy",
        "pandas",
        "scipy.sparse",
        "torch",
        "torch.utils.tensorboard",
        "sklearn.metrics",
        "plotly.graph_objs",
    ):
        import_module(name)
    top, out = Path.cwd(), {}
    for name, steps in cases().items():
        if wanted and not any(part in name for part in wanted):
            continue
        read, write = os.pipe()
        if pid := os.fork():
            os.close(write)
            with os.fdopen(read) as pipe:
                answer = pipe.read()
            os.waitpid(pid, 0)
            out[name] = json.loads(answer or '"no answer"')
            continue
        reason = None
        try:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            folder = top / name.replace(" ", "-")
            folder.mkdir()
            os.chdir(folder)
            sys.argv = sys.argv[:1]
            write_dataset()
            for step in steps:
                step()
        except BaseException as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(reason).encode())
        os._exit(0)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
