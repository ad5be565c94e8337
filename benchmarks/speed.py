"""Where the time goes: training epochs, full-sort evaluation, growth, and the item graph.

    python -m benchmarks.speed                        # all parts
    python -m benchmarks.speed --parts="[epoch]" --sizes="[ml-100k]"

Each measurement is a process of its own. Times are CPU seconds of the process (with one thread: what the wall clock
shows on a free core); memory is the highest resident size, less what was resident before the model was built.
Interactions are generated with a skew of 1/rank for items and lognormal activity, at the counts of the named data.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import recbole_dppmg  # noqa: F401  (repairs RecBole as it is imported)
from recbole_dppmg.config import DPPMGConfig, parse_arguments

#: users, items, interactions
SIZES = {
    "ml-100k": (943, 1_682, 100_000),
    "ml-1m": (6_040, 3_706, 1_000_209),
    "1M": (20_000, 10_000, 1_000_000),
    "4M": (80_000, 40_000, 4_000_000),
    "16M": (320_000, 160_000, 16_000_000),
}
_STEPS = 40  # of RecBole's LightGCN, where an epoch has more; scaled to the epoch


def main(argv: list[str]) -> None:
    keys = parse_arguments(argv)
    parts = keys.pop("parts", ["epoch", "evaluation", "growth", "graph"])
    sizes = keys.pop("sizes", ["ml-100k", "ml-1m"])
    if "epoch" in parts:
        for size in sizes:
            for batch in (2048, 40960):
                print(f"\n{size}, batch {batch}: s/epoch, MB")
                stock = apart(lightgcn_epoch, size, batch)
                print(f"  RecBole LightGCN   {stock['seconds']:8.3f} {stock['mb']:7.0f}")
                for name, channels in (("DPPMG id only", []), ("DPPMG text, image", ["text", "image"])):
                    own = apart(dppmg_epoch, size, batch, channels)
                    ratio = stock["seconds"] / own["seconds"]
                    print(f"  {name:18} {own['seconds']:8.3f} {own['mb']:7.0f}   {ratio:.1f} times as fast")
    if "evaluation" in parts:
        found = apart(evaluation, 6_000, 20_000)
        ratio = found["recbole"] / found["ours"]
        told = "full-sort evaluation, 6,000 x 20,000: RecBole {recbole:.2f} s, ours {ours:.2f} s".format(**found)
        print(f"\n{told}, {ratio:.1f} times as fast", flush=True)
    if "growth" in parts:
        points = []
        for size in ("1M", "4M", "16M"):
            own = apart(dppmg_epoch, size, 2**18, [])
            points.append((SIZES[size][2], own["seconds"]))
            print(f"\n{size} interactions, id only: {own['seconds']:.1f} s/epoch, {own['mb']:.0f} MB", end="")
        exponent = np.polyfit(*np.log(np.array(points)).T, 1)[0]
        print(f"\n  time grows with interactions to the power {exponent:.2f}")
    if "graph" in parts:
        found = apart(item_graph, 200_000, 384)
        print(f"\nkNN graph of 200,000 items, 384-d: {found['seconds']:.0f} s, {found['mb']:.0f} MB")


def apart(measure: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Run a measurement in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def generated(size: str) -> torch.Tensor:
    """Distinct pairs of internal ids (from 1), int64 (2, E); every user and item occurs, E near the named count."""
    users, items, number = SIZES[size]
    draw = np.random.default_rng(0)
    activity = draw.lognormal(0, 1, users)
    popularity = 1 / np.arange(10, items + 10)
    rows = draw.choice(users, int(1.15 * number), p=activity / activity.sum())
    columns = draw.choice(items, len(rows), p=popularity / popularity.sum())
    rows = np.concatenate([np.arange(users), draw.integers(0, users, items), rows])
    columns = np.concatenate([draw.integers(0, items, users), np.arange(items), columns])
    keys = np.unique(rows.astype(np.int64) * items + columns)
    keys = draw.permutation(keys)[:number]
    return torch.from_numpy(np.stack([keys // items + 1, keys % items + 1]))


class Generated:
    """What `DPPMG` asks of a dataset, for interactions that are only in memory."""

    def __init__(self, config: DPPMGConfig, pairs: torch.Tensor, users: int, items: int):
        self.count = {config["USER_ID_FIELD"]: users + 1, config["ITEM_ID_FIELD"]: items + 1}
        table = {config["USER_ID_FIELD"]: pairs[0], config["ITEM_ID_FIELD"]: pairs[1]}
        self.inter_feat = type("Table", (dict,), {"columns": property(dict.keys)})(table)
        self.items = items + 1

    def num(self, field: str) -> int:
        return self.count[field]

    def item_features(self, modality: str) -> tuple[torch.Tensor, torch.Tensor]:
        seed = {"text": 1, "image": 2}[modality]
        table = torch.randn(self.items, 384, generator=torch.Generator().manual_seed(seed))
        return table, torch.arange(self.items) > 0


def resident_mb(name: str) -> float:
    """`VmRSS`, what is resident now, or `VmHWM`, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def timed(step: Callable[[], object], times: int = 3) -> float:
    """CPU seconds, the best of several."""
    found = []
    for _ in range(times):
        used = time.process_time()
        step()
        found.append(time.process_time() - used)
    return min(found)


def dppmg_epoch(size: str, batch: int, channels: list[str], layers: int = 2) -> dict[str, float]:
    from recbole_dppmg.model.dppmg import DPPMG
    from recbole_dppmg.trainer.preference import PreferencePhase
    from recbole_dppmg.trainer.tracking import Tracker

    pairs = generated(size)
    settings = {"train_batch_size": batch, "n_layers": layers, "modalities": channels, "quantizer_warmup": 1}
    config = DPPMGConfig("DPPMG", "ml-100k", config_dict=settings | {"gpu_id": "", "state": "ERROR"})
    before = resident_mb("VmRSS")
    model = DPPMG(config, Generated(config, pairs, *SIZES[size][:2]))
    phase = PreferencePhase(model, config, Tracker())
    epochs = iter(range(100))
    phase._epoch(pairs, next(epochs))
    phase._epoch(pairs, next(epochs))  # from here on with the quantizer
    seconds = timed(lambda: phase._epoch(pairs, next(epochs)), 1 if pairs.shape[1] > 2e6 else 3)
    return {"seconds": seconds, "mb": resident_mb("VmHWM") - before}


def recbole_data(size: str, folder: Path, pairs: torch.Tensor) -> None:
    (folder / size).mkdir()
    with open(folder / size / f"{size}.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        np.savetxt(file, np.stack([*pairs.numpy(), np.arange(pairs.shape[1])], 1), "%d", "\t")


def lightgcn_epoch(size: str, batch: int, layers: int = 2) -> dict[str, float]:
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender import LightGCN
    from recbole.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recbole_data(size, folder, generated(size))
        keys = {"data_path": name, "checkpoint_dir": name, "gpu_id": "", "state": "ERROR", "show_progress": False}
        split = {"split": {"RS": [0.998, 0.001, 0.001]}, "order": "TO", "group_by": "none"}  # RecBole wants three parts
        keys |= {"train_batch_size": batch, "n_layers": layers, "eval_args": split}
        config = DPPMGConfig("LightGCN", size, config_dict=keys)
        train, _, _ = data_preparation(config, create_dataset(config))
    before = resident_mb("VmRSS")
    model = LightGCN(config, train.dataset)
    optimizer, share = torch.optim.Adam(model.parameters(), lr=config["learning_rate"]), min(1.0, _STEPS / len(train))
    trainer = Trainer(config, model)
    if share == 1:
        seconds = timed(lambda: trainer._train_epoch(train, 0), 2)
    else:
        used = time.process_time()
        for step, interaction in enumerate(train):
            if step == _STEPS:
                break
            optimizer.zero_grad()
            loss = model.calculate_loss(interaction)
            loss.backward()
            optimizer.step()
        seconds = (time.process_time() - used) / share
    return {"seconds": seconds, "mb": resident_mb("VmHWM") - before}


def evaluation(users: int, items: int) -> dict[str, float]:
    """RecBole's evaluator and ours on one model, the same users, items and metrics."""
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender import BPR
    from recbole.trainer import Trainer

    from recbole_dppmg.evaluation.ranking import RankingTask, evaluate

    with tempfile.TemporaryDirectory() as name:
        SIZES["eval"] = (users, items, 300_000)
        recbole_data("eval", Path(name), generated("eval"))
        keys = {"data_path": name, "checkpoint_dir": name, "gpu_id": "", "state": "ERROR", "show_progress": False}
        config = DPPMGConfig("BPR", "eval", config_dict=keys)
        train, _, test = data_preparation(config, create_dataset(config))
    model = BPR(config, train.dataset)
    trainer = Trainer(config, model)
    trainer.eval_collector.data_collect(train)
    recbole = timed(lambda: trainer.evaluate(test, load_best_model=False), 2)
    names = [metric.lower() for metric in config["metrics"]]

    @torch.no_grad()
    def scores(chosen: torch.Tensor) -> torch.Tensor:
        return model.full_sort_predict({model.USER_ID: chosen}).view(len(chosen), -1)

    task = RankingTask.of(test)
    ours = timed(lambda: evaluate(scores, task, config["topk"], names), 2)
    return {"recbole": recbole, "ours": ours}


def item_graph(items: int, width: int) -> dict[str, float]:
    from recbole_dppmg.data.graph import knn_graph

    features = torch.randn(items, width, generator=torch.Generator().manual_seed(0))
    before = resident_mb("VmRSS")
    used = time.process_time()
    knn_graph(features, torch.ones(items, dtype=torch.bool), 10)
    return {"seconds": time.process_time() - used, "mb": resident_mb("VmHWM") - before}


if __name__ == "__main__":
    main(sys.argv[1:])
