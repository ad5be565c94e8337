"""Drawn covers: a stand-in for posters, which cannot be shipped, and labelled so wherever they show.

A cover is a picture of what an item's title says (an icon), of its genre (a second icon and a palette) and of
its decade (the pattern behind). Drawing is deterministic: the same item has the same cover everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from recbole_dppmg.artifacts import atomic_path
from recbole_dppmg.data.icons import icons, picture
from recbole_dppmg.data.palettes import GENRES, PALETTES, Genre
from recbole_dppmg.progress import progress
from recbole_dppmg.types import Item

SIZE = 128
PATTERNS = ("frame", "rays", "stripes", "disc")
_ENCODER = "all-MiniLM-L6-v2"
_ENOUGH = 0.5  # cosine of title and icon name from which a match is rarely absurd
_GENRE_SHARE = 0.2  # of the icon's fit to the genre in the choice of the main icon
_MAIN, _SECOND = 84, 42  # pixels


@dataclass(frozen=True)
class Cover:
    """What is on a cover: two icons by name, a palette out of `PALETTES`, a pattern out of `PATTERNS`."""

    main: str
    second: str
    palette: str
    pattern: str


def pattern_of(year: int | None) -> str:
    """The pattern behind the icon tells the decade."""
    if year is None or year >= 1990:
        return "disc"
    return "frame" if year < 1960 else "rays" if year < 1980 else "stripes"


def genre_of(attributes: Sequence[str]) -> Genre:
    """The most telling of an item's genres: the first in the order of `GENRES`; unknown ones get one by hash."""
    lowered = {attribute.lower() for attribute in attributes}
    for name, genre in GENRES.items():
        if name in lowered:
            return genre
    known = list(GENRES.values())
    return known[_hash(" ".join(sorted(lowered))) % len(known)] if lowered else GENRES["drama"]


def plan_covers(items: Sequence[Item]) -> list[Cover]:
    """Choose icons, palette and pattern for items, by the meaning of their titles and genres."""
    from recbole_dppmg.data.encoders import text_encoder

    encode = text_encoder(_ENCODER).encode
    names = list(icons())
    by_name = encode(names)
    by_tags = encode([f"{icon.name}: {', '.join(icon.tags)}" for icon in icons().values()])
    place = {name: n for n, name in enumerate(names)}
    genres = [genre_of(item.attributes) for item in items]
    title = encode([item.title for item in items])
    fit = torch.maximum(title @ by_name.T, title @ by_tags.T)
    kinds = {", ".join(item.attributes) for item in items}
    kind_rows = {kind: n for n, kind in enumerate(sorted(kinds))}
    kind = encode([f"{k} film" for k in kind_rows])
    kind = torch.maximum(kind @ by_name.T, kind @ by_tags.T)
    coherent = fit + _GENRE_SHARE * kind[[kind_rows[", ".join(item.attributes)] for item in items]]
    covers = []
    for n, item in enumerate(items):
        own = torch.tensor([place[name] for name in genres[n].icons])
        best = int(coherent[n].argmax())
        # the genre's icons in the order of their fit to the title, so that films of a genre differ
        ranked = [genres[n].icons[i] for i in fit[n, own].argsort(descending=True).tolist()]
        main = names[best] if float(fit[n, best]) >= _ENOUGH else ranked[0]
        others = [name for name in ranked if name != main]
        palettes = genres[n].palettes
        covers.append(Cover(main, others[0], palettes[_hash(item.title) % len(palettes)], pattern_of(item.year)))
    return covers


def draw(cover: Cover) -> Image.Image:
    """The cover as an RGB image of 128 x 128."""
    top, bottom, light = (np.array(colour, dtype=np.float32) for colour in PALETTES[cover.palette])
    ramp = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    array = np.broadcast_to(top + (bottom - top) * ramp, (SIZE, SIZE, 3)).astype(np.uint8)
    image = Image.fromarray(array, "RGB")
    image.paste(Image.new("RGB", image.size, tuple(int(c) for c in light)), (0, 0), _pattern(cover.pattern))
    main, second = picture(cover.main, _MAIN), picture(cover.second, _SECOND)
    image.paste(main, ((SIZE - _MAIN) // 2 - 6, (SIZE - _MAIN) // 2 - 8), main)
    image.paste(second, (SIZE - _SECOND - 4, SIZE - _SECOND - 4), second)
    return image


def _pattern(name: str) -> Image.Image:
    """A mask of the lighter colour, drawn at twice the size for smooth edges."""
    side = 2 * SIZE
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if name == "disc":
        pen.ellipse((16, 12, side - 40, side - 44), fill=255)
    elif name == "stripes":
        for n in range(4):
            pen.rectangle((0, side - 92 + 26 * n, side, side - 92 + 26 * n + 8 + 4 * n), fill=255)
        pen.ellipse((36, 16, side - 60, side - 80), fill=255)
    elif name == "rays":
        centre = (side // 2 - 12, side // 2 - 16)
        for start in range(0, 360, 30):
            box = (centre[0] - side, centre[1] - side, centre[0] + side, centre[1] + side)
            pen.pieslice(box, start, start + 15, fill=255)
    elif name == "frame":
        pen.rectangle((0, 0, side - 1, side - 1), outline=255, width=14)
        pen.rounded_rectangle((30, 26, side - 54, side - 58), radius=24, fill=255)
    return mask.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def ensure_covers(items: Sequence[Item], folder: Path) -> dict[str, Path]:
    """Draw the covers that the folder does not have yet; returns the path by item id."""
    paths = {item.id: folder / f"{_hash(f'{item.id} {item.title}'):016x}.png" for item in items}
    missing = [item for item in items if not paths[item.id].is_file()]
    if missing:
        for item, cover in progress(list(zip(missing, plan_covers(missing), strict=True)), "draw covers", unit="cover"):
            with atomic_path(paths[item.id]) as temporary:
                draw(cover).save(temporary, format="PNG")
    return paths


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
