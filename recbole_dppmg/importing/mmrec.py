"""Datasets in the layout of MMRec (arXiv 2302.03497): one `.inter` with the split in `x_label`, features as `.npy`
by item number, and tables of the original ids where they were kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_dppmg.artifacts import write_text
from recbole_dppmg.errors import DataError
from recbole_dppmg.importing.atomic import check_ids, dataset_folder, write_keys, write_table
from recbole_dppmg.importing.delimited import how_to_go_on
from recbole_dppmg.importing.tables import choose_columns, numbers, read_table

_PARTS = ("train", "valid", "test")  # by x_label
_FEATURES = {"text": "text_feat.npy", "image": "image_feat.npy"}
_INDEX = "item_index.csv"
_MAPPINGS = {"user": "u_id_mapping.csv", "item": "i_id_mapping.csv"}


def import_mmrec(source: Path, root: Path, name: str) -> list[str]:
    """Write `root/name` from a dataset of MMRec: the same split, the same features, the original ids if known.

    Returns:
        lines that tell what was found and how to go on.

    Raises:
        ConfigError, DataError: naming the argument, or the file, row and column at fault.
    """
    files = sorted(source.glob("*.inter"))
    if len(files) != 1:
        raise DataError(f"{source}: expected one .inter file, found {', '.join(f.name for f in files) or 'none'}")
    table = read_table(files[0], "\t")
    chosen = choose_columns(files[0], table.columns, ("user", "item", "rating", "time"), ("user", "item"), {})
    if "x_label" not in table:
        raise DataError(f"{files[0]}: has no column x_label, the split; for other layouts there is `import csv`")
    label = pd.to_numeric(table["x_label"], errors="coerce")
    if (wrong := ~label.isin(range(len(_PARTS)))).any():
        row = int(wrong.idxmax())
        raise DataError(f"{files[0]}: row {row + 2}: x_label is '{table['x_label'][row]}', expected 0, 1 or 2")
    inter = pd.DataFrame()
    for key in ("user", "item"):
        check_ids(files[0], chosen[key], table[chosen[key]])
        inter[f"{key}_id"] = _original(source / _MAPPINGS[key], chosen[key], table[chosen[key]])
    kinds = {"user_id": "token", "item_id": "token"}
    for key, written in (("rating", "rating"), ("time", "timestamp")):
        if key in chosen:
            inter[written], kinds[written] = numbers(files[0], chosen[key], table[chosen[key]]), "float"
    numbered = pd.to_numeric(table[chosen["item"]], errors="coerce")
    if (wrong := numbered.isna() | numbered.mod(1).ne(0) | numbered.lt(0)).any():
        row = int(wrong.idxmax())
        raise DataError(f"{files[0]}: row {row + 2}: item '{table[chosen['item']][row]}' is not a number of a row")
    features = {m: source / file for m, file in _FEATURES.items() if (source / file).is_file()}
    rows = {modality: _rows(path, int(numbered.max())) for modality, path in features.items()}
    sizes = [int((label == n).sum()) for n in range(len(_PARTS))]
    told = [
        f"{inter['user_id'].nunique()} users, {inter['item_id'].nunique()} items, interactions "
        + ", ".join(f"{size} {part}" for part, size in zip(_PARTS, sizes, strict=True)),
        *(f"{modality}: {features[modality].name}, {n} rows" for modality, n in rows.items()),
        *(
            f"{modality}: no {file}, so no {modality} tokens"
            for modality, file in _FEATURES.items()
            if modality not in rows
        ),
    ]
    with dataset_folder(root, name) as folder:
        for n, part in enumerate(_PARTS):
            write_table(folder / f"{name}.{part}.inter", inter[label == n], kinds)
        keys: dict[str, object] = {"benchmark_filename": list(_PARTS), "train_phases": ["preference"]}
        for modality, path in features.items():
            shutil.copyfile(path, folder / path.name)
            keys[f"{modality}_features"] = path.name
        if rows:
            originals = _original(source / _MAPPINGS["item"], "itemID", pd.Series(map(str, range(max(rows.values())))))
            lines = [f'"{item}",{row}' for row, item in enumerate(originals.str.replace('"', '""'))]
            write_text(folder / _INDEX, "\n".join(["item_id,row", *lines]) + "\n")
            keys["feature_index"] = _INDEX
        write_keys(folder / f"{name}.yaml", keys)
    return [*told, *how_to_go_on(root, name)]


def _original(mapping: Path, column: str, values: pd.Series) -> pd.Series:
    """The ids that MMRec's preparation had replaced by numbers; as they are where it kept no table."""
    values = values.str.strip()
    if not mapping.is_file():
        return values
    table = read_table(mapping)
    named = {name.lower(): name for name in table.columns}
    number = named.get(column.lower())
    if number is None or len(table.columns) != 2:
        raise DataError(f"{mapping}: expected two columns, an id and {column}; found {', '.join(table.columns)}")
    (original,) = (name for name in table.columns if name != number)
    known = dict(zip(table[number].str.strip(), table[original].str.strip(), strict=True))
    if len(set(known.values())) != len(table):
        raise DataError(f"{mapping}: an id or a number is repeated; make it one row each")
    return values.map(lambda value: known.get(value, value))


def _rows(path: Path, largest: int) -> int:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a plain .npy array ({error})") from error
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected numbers in rows x D, found {table.dtype} {table.shape}")
    if len(table) <= largest:
        raise DataError(f"{path}: has {len(table)} rows, but item {largest} has interactions")
    return len(table)
