"""Reading a bundle's files without trusting them: each is what it should be, or is refused by name.

A manifest tells damage, not malice: whoever writes a bundle writes its manifest too. So nothing here is unpickled or
imported, and what is read is checked for its kind, its type, its shape and its range.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recbole_dppmg.artifacts import MANIFEST, load_tensors
from recbole_dppmg.errors import BundleError, ConfigError
from recbole_dppmg.generators.base import HEADS
from recbole_dppmg.model.joint_space import JointSpace
from recbole_dppmg.model.space import PreferenceSpace
from recbole_dppmg.settings import Settings, checked
from recbole_dppmg.types import MODALITIES, Item, token_name

#: Comma-separated `pkg.mod:Class` that bundles on this machine may name as generators beside ours, or `openai`.
TRUSTED = "RECBOLE_DPPMG_HEADS"
#: It sends a secret of this machine's environment to an address, and a bundle names both.
_ON_TRUST = {"openai"}
_SUFFIXES = {".safetensors", ".json", ".parquet", ".md"}
_IMAGES, _IMAGE_SUFFIXES = "images", {".jpg", ".jpeg", ".png", ".webp"}
_INTEGER, _TEXT = pa.types.is_integer, pa.types.is_string
_ITEM_COLUMNS = {"row": _INTEGER, "id": _TEXT, "title": _TEXT, "text": _TEXT, "year": _INTEGER}
_MAYBE_NULL = {"attributes", "year", "image"}


def check_kinds(folder: Path) -> None:
    """Raises a BundleError for the first file that is of no kind that a bundle has, such as a pickle."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        # what git and the hub put beside a download
        if path.is_dir() or inside.parts[0] in (".git", ".gitattributes", ".cache") or inside.name == MANIFEST:
            continue
        allowed = _IMAGE_SUFFIXES if inside.parts[0] == _IMAGES else _SUFFIXES
        if path.suffix.lower() not in allowed:
            raise BundleError(f"{path}: a bundle has no such file ({', '.join(sorted(allowed))}); remove it")


def read_json(path: Path) -> dict[str, Any]:
    """An object.

    Raises:
        BundleError: the file is missing, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as JSON ({error}); copy the bundle again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path}: expected an object, found {type(found).__name__}; copy the bundle again")
    return found


def read_config(path: Path) -> tuple[Settings, int, dict[str, str]]:
    """The run's keys, its seed, and the names of its generators by modality.

    Raises:
        BundleError: something is missing or of the wrong type, or a generator is a class that is not trusted here.
    """
    found = read_json(path)
    for key, kind in {"seed": int, "settings": dict, "heads": dict}.items():
        if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
            raise BundleError(f"{path}: '{key}' is missing or no {kind.__name__}; copy the bundle again")
    try:
        settings = checked(Settings, found["settings"])
    except (ConfigError, TypeError) as error:
        raise BundleError(f"{path}: {error}; the bundle is of another version, or damaged") from error
    trusted = {name.strip() for name in os.environ.get(TRUSTED, "").split(",")}
    for modality, name in found["heads"].items():
        known = (HEADS.get(modality, {}).keys() - _ON_TRUST) | trusted - {""}
        if modality not in HEADS or not isinstance(name, str) or name not in known:
            raise BundleError(
                f"{path}: {modality} generator {name!r} is unknown or taken on trust only; if you trust this bundle "
                f"with it, name it in the environment variable {TRUSTED}"
            )
    return settings, found["seed"], {m: found["heads"][m] for m in MODALITIES if m in found["heads"]}


def read_space(folder: Path) -> PreferenceSpace:
    """The space of preferences.

    Raises:
        BundleError: a tensor is missing, or does not fit the others.
    """
    files = [folder / "model.safetensors", folder / "quantizer.safetensors"]
    tensors = load_tensors(files[0])
    if files[1].is_file():  # without modalities there are no codes
        tensors |= load_tensors(files[1])
    try:
        return PreferenceSpace.from_tensors(tensors)
    except BundleError as error:
        raise BundleError(f"{files[0]} with {files[1].name}: {error}") from error


def read_joint(path: Path, space: PreferenceSpace) -> JointSpace | None:
    """The joint space; None: the bundle has none.

    Raises:
        BundleError: it does not fit the features that the preference space projects.
    """
    if not path.is_file():
        return None
    tensors = load_tensors(path)
    try:
        joint = JointSpace.from_tensors(tensors)
        widths = {m: space.projection[m]["weight"].shape[1] for m in MODALITIES if m in space.projection}
        found = {m: getattr(joint, m)[0].in_features for m in widths}
        if found != widths:
            raise ValueError(f"reads features of width {found}, expected {widths}")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("a weight is not finite")
    except (KeyError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise BundleError(f"{path}: {error}; copy or train it again") from error
    return joint


def read_items(folder: Path, number: int) -> list[Item]:
    """The items by row, `number` of them.

    Raises:
        BundleError: a column is missing or of another type, rows are not in order, or an image is not the bundle's.
    """
    path = folder / "items.parquet"
    kinds = _ITEM_COLUMNS | {"attributes": _list_of(_TEXT), "image": _TEXT}
    columns = _columns(path, kinds, number)
    return [_item(path, dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def read_users(path: Path, number: int, n_items: int) -> tuple[list[str], list[list[int]]]:
    """The users' ids by row, and the rows of each one's last items.

    Raises:
        BundleError: a column is missing or of another type, or a row is out of range.
    """
    columns = _columns(path, {"row": _INTEGER, "id": _TEXT, "recent": _list_of(_INTEGER)}, number)
    for row, items in enumerate(columns["recent"]):
        if not all(isinstance(item, int) and 0 < item < n_items for item in items):
            raise BundleError(f"{path}: row {row}: 'recent' has an item that is not there; copy the bundle again")
    return columns["id"], columns["recent"]


def read_glossary(path: Path, space: PreferenceSpace) -> dict[str, dict[str, list[str]]]:
    """Words and items per token; empty where no item has a text.

    Raises:
        BundleError: a token is missing, or an entry is not two lists of text.
    """
    found = read_json(path)
    names = {
        token_name(m, level, code)
        for m in space.modalities
        for level in range(space.codebooks[m].shape[0])
        for code in range(space.codebooks[m].shape[1])
    }
    for name in sorted(names) if found else ():
        entry = found.get(name)
        if not isinstance(entry, dict) or not all(_texts(entry.get(key)) for key in ("items", "words")):
            raise BundleError(f"{path}: '{name}' is missing or not two lists of text; copy the bundle again")
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _list_of(kind):
    return lambda type_: pa.types.is_list(type_) and kind(type_.value_type)


def _columns(path: Path, kinds: Mapping[str, Any], number: int) -> dict[str, list]:
    """Columns as Python lists, after a check of types, of missing cells and of the row numbers."""
    try:
        table = pq.read_table(path, columns=list(kinds), partitioning=None)
        found = {name: table[name] for name in kinds}
        for name, column in found.items():
            if not (kinds[name](column.type) or (pa.types.is_null(column.type) and name in _MAYBE_NULL)):
                raise ValueError(f"column '{name}' is of type {column.type}")
            if name not in _MAYBE_NULL and column.null_count:
                raise ValueError(f"column '{name}' has empty cells")
        columns = {name: column.to_pylist() for name, column in found.items()}
        if columns["row"] != list(range(number)):
            raise ValueError(f"expected the rows 0 to {number - 1} in order, as the preference model has them")
        if len(set(columns["id"])) != number:
            raise ValueError("an id is repeated")
    except (pa.ArrowException, OSError, KeyError, ValueError, MemoryError, OverflowError) as error:
        raise BundleError(f"{path}: not as it should be ({error}); copy the bundle again") from error
    return columns


def _item(path: Path, row: Mapping[str, Any]) -> Item:
    image = path.parent / row["image"] if row["image"] else None
    if image and (image.parent != path.parent / _IMAGES or not image.is_file()):
        raise BundleError(f"{path}: item '{row['id']}': image '{row['image']}' is not one of the bundle's")
    attributes: Sequence[str] = row["attributes"] or ()
    return Item(row["id"], row["title"], row["text"], tuple(a or "" for a in attributes), row["year"], image)
