"""Features that come with a dataset instead of from an encoder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_dppmg.errors import DataError


def given_features(path: Path, index: Path | None, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Features by item id, from `.npy` with an index or from `.parquet`.

    Args:
        path: a `.npy` of numbers (rows, D), or a `.parquet` with the columns `item_id` and `features` (lists).
        index: for `.npy`, a CSV with the columns `item_id` and `row`; not used for `.parquet`.
        ids: items to look up, in this order.

    Returns:
        float32 (n, D), zero where an item has none, and a bool mask (n,) of the items that have.

    Raises:
        DataError: a file is missing or malformed, or no item of `ids` has features.
    """
    if not path.is_file():
        raise DataError(f"features {path}: no such file")
    if path.suffix == ".npy":
        if index is None or not index.is_file():
            raise DataError(f"features {path}: needs an index (feature_index), a CSV with the columns item_id, row")
        table, rows = _npy(path), _index(index)
    elif path.suffix == ".parquet":
        table, rows = _parquet(path)
    else:
        raise DataError(f"features {path}: expected .npy or .parquet")
    for item, row in rows.items():
        if not 0 <= row < len(table):
            raise DataError(f"{index}: item '{item}' has row {row}, but {path} has {len(table)} rows")
    present = torch.tensor([i in rows for i in ids], dtype=torch.bool)
    if not present.any():
        raise DataError(f"features {path}: none of the dataset's {len(ids)} items is in it; compare the item ids")
    chosen = torch.from_numpy(table[[rows[i] for i in ids if i in rows]].astype(np.float32))
    if not torch.isfinite(chosen).all():
        bad = [i for i in ids if i in rows][int((~torch.isfinite(chosen).all(1)).nonzero()[0])]
        raise DataError(f"features {path}: item '{bad}' has a value that is not finite")
    features = torch.zeros(len(ids), table.shape[1])
    features[present] = chosen
    return features, present


def _npy(path: Path) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"features {path}: not a plain .npy array ({error})") from error
    return _checked(path, table)


def _checked(path: Path, table: np.ndarray) -> np.ndarray:
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise DataError(f"features {path}: expected numbers in rows x D, found {table.dtype} {table.shape}")
    return table


def _index(path: Path) -> dict[str, int]:
    rows: dict[str, int] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"item_id", "row"} <= set(reader.fieldnames or ()):
            raise DataError(f"{path}: expected the columns item_id and row, found {reader.fieldnames}")
        for line in reader:
            if not str(line["row"]).isdecimal() or line["item_id"] in rows:
                raise DataError(f"{path}: line {reader.line_num}: '{line['item_id']}' is repeated or has no row number")
            rows[line["item_id"]] = int(line["row"])
    return rows


def _parquet(path: Path) -> tuple[np.ndarray, dict[str, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read = pq.read_table(path, columns=["item_id", "features"])
        table = np.array(read["features"].to_pylist(), dtype=np.float32)
    except (pa.ArrowException, KeyError, OSError, ValueError, TypeError) as error:
        raise DataError(f"features {path}: expected the columns item_id, features (lists of one length)") from error
    ids = [str(i) for i in read["item_id"].to_pylist()]
    if len(set(ids)) != len(ids):
        raise DataError(f"features {path}: an item_id is repeated")
    return _checked(path, table), {item: row for row, item in enumerate(ids)}
