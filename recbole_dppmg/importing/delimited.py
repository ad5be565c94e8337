"""Interactions, items and images from CSV files and a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.importing.atomic import check_ids, dataset_folder, write_keys, write_table
from recbole_dppmg.importing.tables import choose_columns, numbers, read_table, text_columns, times

_INTERACTION = ("user", "item", "rating", "time")
_ITEM = ("item", "title", "image")
#: Names in the atomic files.
_WRITTEN = {"user": "user_id", "item": "item_id", "rating": "rating", "time": "timestamp", "title": "title"}


def import_delimited(
    interactions: Path,
    items: Path | None,
    images: Path | None,
    root: Path,
    name: str,
    given: Mapping[str, str | None],
    dry: bool = False,
) -> list[str]:
    """Write `root/name` from tables with a header.

    Args:
        interactions: a row for each; needs a user and an item.
        items: a row for each; needs the item.
        images: a folder of files that the items' image column names, or that are named by item id.
        given: columns by `user`, `item`, `rating`, `time`, `title`, `image`, and `text`, several with commas; `-` for
            none; what is not given is guessed. And the `delimiter`.
        dry: write nothing.

    Returns:
        lines that tell which columns were taken, how much was found, and how to go on.

    Raises:
        ConfigError, DataError: naming the argument, or the file, row and column at fault.
    """
    table = read_table(interactions, given.get("delimiter"))
    chosen = choose_columns(interactions, table.columns, _INTERACTION, ("user", "item"), given)
    told = [_told(interactions, table.columns, chosen, [])]
    inter = pd.DataFrame({_WRITTEN[key]: table[column] for key, column in chosen.items()})
    for key in ("user", "item"):
        check_ids(interactions, _WRITTEN[key], inter[_WRITTEN[key]])
    if "rating" in chosen:
        inter["rating"] = numbers(interactions, chosen["rating"], inter["rating"])
    if "time" in chosen:
        inter["timestamp"] = times(interactions, chosen["time"], inter["timestamp"])
    described = None
    if items is not None:
        described, lines = _items(items, given)
        told += lines
    if images is not None:
        _check_images(images, set(inter["item_id"]), described)
    known = set(inter["item_id"])
    told.append(f"{inter['user_id'].nunique()} users, {len(known)} items, {len(inter)} interactions")
    if bare := known - set(described["item_id"] if described is not None else ()):
        told.append(f"{len(bare)} items with interactions have no row among the items, e.g. '{min(bare)}'")
    if dry:
        return [*told, "nothing was written"]
    kinds = {"rating": "float", "timestamp": "float"}
    with dataset_folder(root, name) as folder:
        write_table(folder / f"{name}.inter", inter, {column: kinds.get(column, "token") for column in inter})
        if described is not None:
            kinds = {"item_id": "token", "image": "token"}
            write_table(folder / f"{name}.item", described, {c: kinds.get(c, "token_seq") for c in described})
        write_keys(folder / f"{name}.yaml", _keys(name, root, images, "time" in chosen))
    return [*told, *how_to_go_on(root, name)]


def how_to_go_on(root: Path, name: str) -> list[str]:
    """Where the dataset is, and the commands that use it."""
    keys = f"--dataset={name} --data_path={root} --config_files={root / name / name}.yaml"
    return [f"written: {root / name}", f"check it: run_dppmg.py encode {keys}", f"train on it: run_dppmg.py {keys}"]


def _keys(name: str, root: Path, images: Path | None, timed: bool) -> dict[str, object]:
    keys: dict[str, object] = {}
    if images is not None:
        keys["image_dir"] = str(images.resolve())
    if not timed:  # the default split is by time
        keys["eval_args"] = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}
    return keys


def _items(path: Path, given: Mapping[str, str | None]) -> tuple[pd.DataFrame, list[str]]:
    table = read_table(path, given.get("delimiter"))
    # the interactions' own name for an item often is not the catalogue's
    own = dict(given) | {"item": given.get("item") if given.get("item") in table.columns else None}
    chosen = choose_columns(path, table.columns, _ITEM, ("item",), own)
    texts = text_columns(path, table.columns, given.get("text"), chosen)
    told = [_told(path, table.columns, chosen, texts)]
    found = pd.DataFrame({"item_id": table[chosen["item"]]})
    check_ids(path, "item_id", found["item_id"])
    if "title" in chosen:
        found["title"] = table[chosen["title"]]
    for column in texts:
        name = column.strip().replace(" ", "_").replace(":", "_").lower()
        if name in found:
            raise ConfigError(f"--text-columns: '{column}' of {path} would be written as '{name}', which is taken")
        # lists as Python and JSON write them
        listed = table[column].str.fullmatch(r"\s*\[.*\]\s*")
        found[name] = table[column].where(~listed, table[column].str.replace(r"[\[\]'\"]", "", regex=True))
    if "image" in chosen:
        found["image"] = table[chosen["image"]]
    repeated = found["item_id"].duplicated()
    if repeated.any():
        first = found["item_id"][repeated].iloc[0]
        told.append(f"{path}: {int(repeated.sum())} rows repeat an item, e.g. '{first}'; the first row of each is used")
    return found[~repeated], told


def _told(path: Path, columns, chosen: Mapping[str, str], texts: list[str]) -> str:
    shown = [f"{key} = {column}" for key, column in chosen.items()] + ([f"text = {', '.join(texts)}"] if texts else [])
    unused = [column for column in columns if column not in chosen.values() and column not in texts]
    return f"{path}: {'; '.join(shown)}" + (f"; not used: {', '.join(unused)}" if unused else "")


def _check_images(folder: Path, ids: set[str], described: pd.DataFrame | None) -> None:
    if not folder.is_dir():
        raise ConfigError(f"--images={folder}: is no folder")
    if described is not None and "image" in described:
        named = [cell for cell in described["image"] if cell]
        if not any((folder / cell).is_file() for cell in named):
            first = f", e.g. '{named[0]}'" if named else ""
            raise DataError(f"--images={folder}: has none of the files that the image column names{first}; "
                            f"give --image-column, or --image-column=- for files named by item id")  # fmt: skip
        return
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not any(path.stem in ids for path in files):
        first = f", e.g. '{files[0].name}'" if files else ""
        raise DataError(f"--images={folder}: no file is named by an item id{first}; give --image-column")
