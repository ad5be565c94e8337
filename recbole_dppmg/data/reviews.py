"""What users wrote of items: a text column of `.inter`, by user and item."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from recbole_dppmg.errors import ConfigError


class Reviews:
    """Texts by (user, item); of several by the same user on the same item, the last.

    Args:
        files: `.inter` files.
        field: the column with the texts.
        users, items: RecBole's internal number of each token, with the name of its column.
        separator: between columns.

    Raises:
        ConfigError: a file has no such column.
    """

    def __init__(
        self,
        files: Sequence[Path],
        field: str,
        users: tuple[str, Mapping[str, int]],
        items: tuple[str, Mapping[str, int]],
        separator: str = "\t",
    ):
        self._width = len(items[1]) + 1
        tables = [_read(file, [users[0], items[0], field], separator) for file in files]
        table = pd.concat(tables, ignore_index=True)
        rows = [table[name].map(dict(numbers)) for name, numbers in (users, items)]
        texts = table[field].str.strip()
        kept = rows[0].notna() & rows[1].notna() & (texts != "")  # RecBole may have filtered the others out
        keys = rows[0][kept].astype(np.int64) * self._width + rows[1][kept].astype(np.int64)
        self._texts = texts[kept].set_axis(keys)
        self._texts = self._texts[~self._texts.index.duplicated(keep="last")]

    def of(self, pairs: Tensor) -> list[str | None]:
        """The text of each (user, item) row of int64 (P, 2), None where there is none."""
        users, items = pairs.cpu().numpy().T
        found = self._texts.reindex(users * self._width + items)
        return [None if text is np.nan else text for text in found.tolist()]


def _read(file: Path, names: Sequence[str], separator: str) -> pd.DataFrame:
    """Columns as text, exactly as they are written."""
    with open(file, encoding="utf-8-sig") as lines:
        header = [column.partition(":")[0] for column in lines.readline().rstrip("\r\n").split(separator)]
    if missing := [name for name in names if name not in header]:
        raise ConfigError(f"review_field: column '{missing[0]}' is not in {file}; it has: {', '.join(header)}")
    return pd.read_csv(
        file, sep=separator, names=header, header=0, usecols=list(names), dtype=str, quoting=csv.QUOTE_NONE,
        keep_default_na=False, encoding="utf-8-sig",
    )  # fmt: skip
