"""Writing a dataset as RecBole's atomic files: the whole folder or nothing."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from recbole_dppmg.artifacts import write_text
from recbole_dppmg.errors import ConfigError, DataError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@contextlib.contextmanager
def dataset_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder to write to, which becomes `root/name` when all went well.

    Raises:
        ConfigError: the name is no file name, or the folder is there already or cannot be made.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name={name}: letters, digits, '_', '-' and '.' only")
    if (root / name).exists():
        raise ConfigError(f"{root / name}: is already there; give another --name or --output, or remove it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-")
    except OSError as error:
        raise ConfigError(f"--output={root}: cannot be written to ({error.strerror}); give another") from error
    with scratch:
        whole = Path(scratch.name) / name
        whole.mkdir()
        yield whole
        whole.rename(root / name)


def write_table(path: Path, table: pd.DataFrame, types: Mapping[str, str]) -> None:
    """Write text cells with RecBole's header `name:type`; tabs, line ends and control characters become spaces."""
    lines = ["\t".join(f"{name}:{types[name]}" for name in table.columns)]
    clean = table.apply(lambda column: column.str.replace(r"[\s\x00-\x1f\x7f\x85\u2028\u2029]+", " ", regex=True))
    clean = clean.apply(lambda column: column.str.strip())
    lines += ["\t".join(row) for row in clean.itertuples(index=False, name=None)]
    write_text(path, "\n".join(lines) + "\n")


def write_keys(path: Path, keys: Mapping[str, Any]) -> None:
    """Write the keys that a run on the dataset needs, for `--config_files`."""
    write_text(path, yaml.safe_dump(dict(keys), sort_keys=False, allow_unicode=True))


def check_ids(path: Path, column: str, values: pd.Series) -> None:
    """Raises a DataError for the first row without an id."""
    empty = values.str.strip() == ""
    if empty.any():
        raise DataError(f"{path}: row {int(empty.idxmax()) + 2} has no {column}; fill it in or leave the row out")
