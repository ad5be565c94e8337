"""The verb `encode`: build the feature store of a dataset and tell what it covers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_dppmg.artifacts import write_json
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.data.dataset import DPPMGDataset
from recbole_dppmg.errors import ConfigError
from recbole_dppmg.runs import set_threads
from recbole_dppmg.trainer.stock import prepare

_SHOWN = 20


def encode(argv: Sequence[str]) -> int:
    """Encode every item's text and image and print a report, which is also `{output_dir}/{dataset}-coverage.json`.

    Args:
        argv: `--key=value` arguments of a run.

    Raises:
        DPPMGError: the configuration, the dataset or an encoder cannot be used.
    """
    config = DPPMGConfig(argv=argv)
    if config["model"] != "DPPMG":
        raise ConfigError(f"--model={config['model']}: has no content to encode; leave it out")
    set_threads(config.settings.threads)
    found = coverage(prepare(config).dataset)
    path = Path(config.settings.output_dir) / f"{config['dataset']}-coverage.json"
    write_json(path, found)
    print(told(found))
    print(f"all of it: {path}")
    return 0


def coverage(dataset: DPPMGDataset) -> dict:
    """What is known of a dataset's items.

    Returns:
        `items`, their number; per modality `{modality}`: `items` that have it and the `width` of its features;
        `without_any`, ids; `left_out` and `converted`, images by `item`, `file` and `reason`.
    """
    items = dataset.items[1:]
    report: dict = {"dataset": dataset.dataset_name, "items": len(items)}
    covered = [False] * len(items)
    for modality in ("text", "image"):
        features, present = dataset.item_features(modality)
        report[modality] = {"items": int(present[1:].sum()), "width": features.shape[1] if present.any() else 0}
        covered = [one or other for one, other in zip(covered, present[1:].tolist(), strict=True)]
    report["without_any"] = [item.id for item, has in zip(items, covered, strict=True) if not has]
    for name, used in (("left_out", False), ("converted", True)):
        faults = [fault for fault in dataset.image_faults if fault.used == used]
        report[name] = [{"item": f.item, "file": f.file, "reason": f.reason} for f in faults]
    return report


def told(report: dict) -> str:
    """The report in lines, with at most 20 names of a kind."""
    lines = [f"{report['dataset']}: {report['items']} items"]
    for modality in ("text", "image"):
        found = report[modality]
        lost = "" if found["items"] else f": no {modality} tokens, and no {modality}s are made"
        lines.append(f"with {modality}: {found['items']}, {found['width']} features each{lost}")
    bare = report["without_any"]
    lines.append(f"with neither: {len(bare)}{_listed([f'item {item}' for item in bare])}")
    for name, words in (("left_out", "images left out"), ("converted", "images converted")):
        rows = [f"{row['file']} (item {row['item']}): {row['reason']}" for row in report[name]]
        lines.append(f"{words}: {len(rows)}{_listed(rows)}")
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _SHOWN} others"] if len(names) > _SHOWN else []
    return "".join(f"\n  {name}" for name in [*names[:_SHOWN], *more])
