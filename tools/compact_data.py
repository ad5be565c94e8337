"""Captions and covers that the compact diffusion pipeline is trained on.

Two kinds: the covers of MovieLens-100k's films, captioned as items are prompted ("Toy Story (1995). Animation,
Children's, Comedy."), and covers of random icons, captioned by titles made of the icons' words or by what is on
them, so that the generator learns words and not only films. Every tenth film is held out.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import recbole
import torch
from torch import Tensor

from recbole_dppmg.data.content import read_items
from recbole_dppmg.data.covers import PATTERNS, Cover, draw, genre_of, pattern_of, plan_covers
from recbole_dppmg.data.icons import icons
from recbole_dppmg.data.palettes import GENRES, PALETTES
from recbole_dppmg.settings import ContentSettings

Example = tuple[str, Cover]

_TITLES = (
    *("{main}", "The {main}", "{main} and {second}", "The {main} of {word}", "Return of the {main}", "My {main}"),
    *("{word}", "The Last {main}", "A {word} Story", "{main} in the {second}", "Blue {main}", "{word}: The {main}"),
)
_YEARS = (1935, 1942, 1951, 1957, 1963, 1968, 1974, 1979, 1982, 1986, 1989, 1991, 1993, 1994, 1995, 1996, 1997, 1998)


def film_examples() -> tuple[list[Example], list[Example]]:
    """Captions and covers of the films: for training, and held out."""
    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.item"
    ids = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    settings = ContentSettings(title_field="movie_title", attribute_field="class", year_field="release_year")
    items = [item for item in read_items(path, ids, settings) if item.title]
    examples = [(item.text, cover) for item, cover in zip(items, plan_covers(items), strict=True)]
    held_out = [hashlib.sha256(item.title.encode()).digest()[0] % 10 == 0 for item in items]
    return (
        [e for e, out in zip(examples, held_out, strict=True) if not out],
        [e for e, out in zip(examples, held_out, strict=True) if out],
    )


def made_up_examples(number: int, seed: int) -> list[Example]:
    """Random covers with captions of both kinds; every icon is the main one equally often."""
    chance = random.Random(seed)
    names, genres = list(icons()), list(GENRES)
    mains: list[str] = []
    while len(mains) < number:
        mains += chance.sample(names, len(names))
    return [_made_up(chance, main, names, genres) for main in mains[:number]]


def _made_up(chance: random.Random, main: str, names: list[str], genres: list[str]) -> Example:
    if chance.random() < 0.4:
        cover = Cover(main, chance.choice(names), chance.choice(list(PALETTES)), chance.choice(PATTERNS))
        parts = [cover.main, cover.second, cover.palette, cover.pattern]
        return ", ".join(parts[: chance.choice((1, 2, 3, 4, 4))]) + ".", cover
    attributes = chance.sample(genres, chance.choice((1, 1, 2, 2, 3)))
    genre, year = genre_of(attributes), chance.choice(_YEARS)
    second = chance.choice([name for name in genre.icons if name != main])
    cover = Cover(main, second, chance.choice(genre.palettes), pattern_of(year))
    words = [tag for tag in icons()[main].tags if tag] or [main]
    title = chance.choice(_TITLES).format(main=main.title(), second=second.title(), word=chance.choice(words).title())
    listed = ", ".join(attribute.capitalize() for attribute in attributes)
    return f"{title} ({year}). {listed}.", cover


def pixels(covers: Sequence[Cover]) -> Tensor:
    """Covers as uint8 (N, 3, 128, 128)."""
    return torch.from_numpy(np.stack([np.asarray(draw(cover)) for cover in covers])).permute(0, 3, 1, 2).contiguous()
