"""DPPMG beside its peers: one split, the same filters, RecBole's metric definitions, an equal tuning budget.

    python -m benchmarks.ranking --data=ml-100k --seeds=3
    python -m benchmarks.ranking --data=FOLDER/NAME --models="[EASE, DPPMG]" --KEY=VALUE ...
    python -m benchmarks.ranking --data=ml-100k --ablation=true

Each (model, setting, seed) is a process of its own and a line in `--out`/NAME.jsonl; what is there is not run
again. Settings are tried with seed 0 and compared by NDCG@20 on validation; the test part of the chosen one is
reported over all seeds. Any other key is a key of the configuration, for all models.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import TOPK, folder_of, load
from benchmarks.peers import SETTINGS, fit
from recbole_dppmg.config import parse_arguments
from recbole_dppmg.evaluation.ranking import best_items, evaluate

_SHOWN = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in TOPK]
_ABLATION: dict[str, dict[str, Any]] = {
    "DPPMG": {},
    "DPPMG, order of items unused": {"recency": 0.0},
    "DPPMG, no text": {"modalities": ["image"]},
    "DPPMG, no image": {"modalities": ["text"]},
    "DPPMG, no item graphs": {"knn_k": 0},
    "DPPMG, no alignment": {"align_weight": 0.0},
    "DPPMG, no quantized ranking": {"quantized_weight": 0.0},
    "DPPMG, id only": {"modalities": []},
}


def main(argv: list[str]) -> None:
    keys = parse_arguments(argv)
    dataset, data_path = folder_of(str(keys.pop("data", "ml-100k")))
    seeds, trials = int(keys.pop("seeds", 3)), int(keys.pop("trials", 4))
    out = Path(str(keys.pop("out", "benchmarks/out")))
    out.mkdir(parents=True, exist_ok=True)
    if keys.pop("ablation", False):
        settings = {name: [change] for name, change in _ABLATION.items()}
    else:
        settings = {name: SETTINGS[name][:trials] for name in keys.pop("models", list(SETTINGS))}
    runs = Runs(out / f"{dataset}.jsonl", {"dataset": dataset, "data_path": data_path, "keys": keys})
    chosen = {}
    for name, tried in settings.items():
        found = [runs.get(name, setting, 0) for setting in tried]
        best = max(found, key=lambda line: line["valid"]["ndcg@20"])
        rest = [runs.get(name, best["setting"], seed) for seed in range(1, seeds)]
        chosen[name] = [best, *rest]
        text = table(chosen)
        (out / f"{dataset}{'-ablation' if settings.keys() <= _ABLATION.keys() else ''}.md").write_text(text)
    print(text)


class Runs:
    """Finished runs, one per line of a file; asks for those that are missing."""

    def __init__(self, path: Path, data: dict[str, Any]):
        self.path, self.data = path, data
        lines = path.read_text().splitlines() if path.is_file() else []
        self.done = {self._key(line): line for line in map(json.loads, lines)}

    @staticmethod
    def _key(line: dict[str, Any]) -> str:
        name = line["model"].split(",")[0]  # variants are told apart by their settings
        return json.dumps([name, line["setting"], line["seed"], line["keys"]], sort_keys=True)

    def get(self, name: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
        asked = {"model": name, "setting": setting, "seed": seed, "keys": self.data["keys"]}
        key = self._key(asked)
        if key not in self.done:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn) as pool:
                line = asked | pool.submit(run, self.data, name, setting, seed).result()
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name} {setting} seed {seed}: {line['valid']['ndcg@20']:.4f} on validation", flush=True)
            self.done[key] = line
        return self.done[key]


def run(data: dict[str, Any], name: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """One model with one setting and seed: metrics of both parts, seconds, and the process's peak memory."""
    split = load(data["dataset"], data["data_path"], data["keys"])
    if name.startswith("DPPMG"):
        for modality in setting.get("modalities", split.config["modalities"]):
            split.train.item_features(modality)  # encoding content is not training
    started, used = time.perf_counter(), time.process_time()
    fitted = fit(name, split, setting, seed)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    parts = {part: split.task(part) for part in ("valid", "test")}
    metrics = {part: evaluate(fitted.scores, task, TOPK) for part, task in parts.items()}
    shown = best_items(fitted.scores, parts["test"], 20).unique()
    return metrics | {
        "coverage": len(shown) / (split.n_items - 1),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__,
        "notes": {name: value for name, value in fitted.notes.items() if isinstance(value, (int, float))},
    }


def table(chosen: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean and, over several seeds, standard deviation of the test metrics."""
    head = ["model", *_SHOWN, "coverage@20", "CPU s", "peak MB", "setting"]
    rows = [head, ["---"] * len(head)]
    for name, lines in chosen.items():
        cells = [name]
        for metric in _SHOWN:
            values = [line["test"][metric] for line in lines]
            spread = f" ±{statistics.stdev(values):.4f}"[0:8].replace("0.", ".") if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}".replace("0.", ".", 1) + spread)
        for key, form in (("coverage", ".2f"), ("cpu_seconds", ".0f"), ("peak_mb", ".0f")):
            cells.append(format(statistics.mean(line[key] for line in lines), form))
        setting = ", ".join(f"{key}={value}" for key, value in lines[0]["setting"].items())
        rows.append([*cells, setting or "defaults"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
