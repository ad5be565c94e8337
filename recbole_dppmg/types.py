"""Plain records that pass between the parts of the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MODALITIES = ("text", "image")

#: Preference tokens of one user: modality -> one code per quantizer level, coarse to fine.
PreferenceTokens = Mapping[str, tuple[int, ...]]


def token_name(modality: str, level: int, code: int) -> str:
    """The vocabulary entry of a preference token, e.g. ``<text_0_17>``."""
    return f"<{modality}_{level}_{code}>"


def token_names(tokens: PreferenceTokens) -> dict[str, list[str]]:
    """All preference tokens of a user by name, per modality, coarse to fine."""
    return {m: [token_name(m, level, code) for level, code in enumerate(codes)] for m, codes in tokens.items()}


@dataclass(frozen=True)
class Item:
    """An item's content, as found in the dataset (untrusted text)."""

    id: str
    title: str
    text: str
    attributes: tuple[str, ...] = ()
    year: int | None = None
    image: Path | None = None


@dataclass(frozen=True)
class TextRequest:
    """Ask for an explanation of `item` for a user with these preference tokens (None: no user)."""

    item: Item
    tokens: PreferenceTokens | None
    seed: int = 0


@dataclass(frozen=True)
class TextResult:
    """A generated explanation, or why there is none."""

    text: str
    error: str | None = None


@dataclass(frozen=True)
class ImageRequest:
    """Ask for an image of `item` for a user with these preference tokens (None: no user)."""

    item: Item
    tokens: PreferenceTokens | None
    seed: int = 0


@dataclass(frozen=True)
class ImageResult:
    """A generated RGB image, or why there is none."""

    image: Image | None
    error: str | None = None
