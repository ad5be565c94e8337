"""The bundle: one folder that holds a trained DPPMG and loads anywhere.

Weights are safetensors, tables are parquet, the rest is JSON. Nothing in it is unpickled or imported, and every
file is checked against `manifest.json` before it is read.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recbole_dppmg.artifacts import check_manifest, save_tensors, write_json, write_manifest, write_text
from recbole_dppmg.bundle_files import (
    check_kinds,
    read_config,
    read_glossary,
    read_items,
    read_joint,
    read_space,
    read_users,
)
from recbole_dppmg.errors import DataError
from recbole_dppmg.generators.base import Catalogue, build_head
from recbole_dppmg.model.joint_space import JointSpace
from recbole_dppmg.model.space import PreferenceSpace
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import Item, PreferenceTokens

_QUANTIZER = ("codebook",)


@dataclass
class Bundle:
    """A trained DPPMG: who likes what, the tokens, and the generators that speak them.

    `user_ids` and `items` are by row; row 0 is padding. `recent` holds the rows of each user's last training items,
    newest first; all of them, in no order, are `space.history`.
    `heads` names the trained generators, e.g. `{"text": "causal_lm", "image": "diffusion"}`.
    """

    settings: Settings
    seed: int
    space: PreferenceSpace
    items: Sequence[Item]
    user_ids: Sequence[str]
    recent: Sequence[Sequence[int]]
    glossary: Mapping[str, Mapping[str, list[str]]]
    heads: Mapping[str, Any]
    joint: JointSpace | None = None

    @cached_property
    def user_rows(self) -> dict[str, int]:
        """The row of each user id."""
        return {user: row for row, user in enumerate(self.user_ids) if row}

    @cached_property
    def item_rows(self) -> dict[str, int]:
        """The row of each item id."""
        return {item.id: row for row, item in enumerate(self.items) if row}

    def row_of(self, user: str) -> int:
        """The row of a user id.

        Raises:
            DataError: the user is not in the bundle.
        """
        if user not in self.user_rows:
            raise DataError(f"user '{user}' is not among the {len(self.user_rows)} users of this bundle")
        return self.user_rows[user]

    def tokens(self, user: str) -> PreferenceTokens:
        """The preference tokens of a user."""
        return self.space.user_tokens(self.row_of(user))

    def save_pretrained(self, directory: str | Path, card: str) -> None:
        """Write the bundle; `card` is its README.md. An existing bundle there is replaced as a whole."""
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".bundle-") as scratch:
            whole = Path(scratch) / "bundle"
            self._write(whole, card)
            if directory.exists():
                directory.rename(Path(scratch) / "previous")
            whole.rename(directory)

    def _write(self, folder: Path, card: str) -> None:
        tensors = self.space.tensors()
        quantizer = {name: tensor for name, tensor in tensors.items() if name.startswith(_QUANTIZER)}
        if quantizer:  # safetensors does not read a file of none
            save_tensors(folder / "quantizer.safetensors", quantizer)
        save_tensors(folder / "model.safetensors", {n: t for n, t in tensors.items() if n not in quantizer})
        if self.joint is not None:
            save_tensors(folder / "joint.safetensors", self.joint.tensors())
        for modality, head in self.heads.items():
            (folder / "heads" / modality).mkdir(parents=True)
            head.save(folder / "heads" / modality)
        config = {
            "seed": self.seed,
            "settings": self.settings.model_dump(),
            "heads": {modality: head.name for modality, head in self.heads.items()},
        }
        write_json(folder / "config.json", config)
        write_json(folder / "glossary.json", self.glossary)
        write_text(folder / "README.md", card)
        self._write_tables(folder)
        write_manifest(folder)

    def _write_tables(self, folder: Path) -> None:
        images = {}
        for row, item in enumerate(self.items):
            if item.image:
                images[row] = f"images/{row}{item.image.suffix.lower()}"
                (folder / "images").mkdir(exist_ok=True)
                shutil.copyfile(item.image, folder / images[row])
        columns = {
            "row": list(range(len(self.items))),
            "id": [item.id for item in self.items],
            "title": [item.title for item in self.items],
            "text": [item.text for item in self.items],
            "attributes": [list(item.attributes) for item in self.items],
            "year": [item.year for item in self.items],
            "image": [images.get(row) for row in range(len(self.items))],
        }
        types = {"attributes": pa.list_(pa.string()), "year": pa.int32(), "image": pa.string()}
        pq.write_table(
            pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()}),
            folder / "items.parquet",
        )
        recent = pa.array([list(rows) for rows in self.recent], pa.list_(pa.int32()))
        users = pa.table({"row": range(len(self.user_ids)), "id": list(self.user_ids), "recent": recent})
        pq.write_table(users, folder / "users.parquet")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Bundle:
        """Load a bundle from a directory or a hub id; generators load when first used.

        Raises:
            BundleError: naming the file that is missing, damaged, of another version, or not what it should be.
        """
        folder = Path(directory)
        if not folder.is_dir():
            from recbole_dppmg.assets import resolve

            folder = resolve(str(directory))
        check_manifest(folder)
        check_kinds(folder)
        settings, seed, heads = read_config(folder / "config.json")
        space = read_space(folder)
        items = read_items(folder, len(space.item_bias))
        users, recent = read_users(folder / "users.parquet", len(space.history.sizes), len(items))
        glossary = read_glossary(folder / "glossary.json", space)
        return cls(
            settings=settings,
            seed=seed,
            space=space,
            items=items,
            user_ids=users,
            recent=recent,
            glossary=glossary,
            heads=_LazyHeads(folder, heads, settings, seed, Catalogue(space, items, glossary)),
            joint=read_joint(folder / "joint.safetensors", space),
        )


class _LazyHeads(Mapping):
    """Generators by modality, each loaded at its first use."""

    def __init__(
        self,
        folder: Path,
        names: Mapping[str, str],
        settings: Settings,
        seed: int,
        catalogue: Catalogue,
    ):
        self._folder, self._names, self._loaded = folder, dict(names), {}
        self._arguments = (catalogue.space.codebooks, settings, seed, catalogue)

    def __getitem__(self, modality: str):
        if modality not in self._loaded:
            head = build_head(modality, self._names[modality], *self._arguments)
            head.load(self._folder / "heads" / modality)
            self._loaded[modality] = head
        return self._loaded[modality]

    def __iter__(self):
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
