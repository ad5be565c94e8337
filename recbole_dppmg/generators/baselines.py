"""What trained generators are measured against: a sentence of metadata, and the nearest image of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_dppmg.data.images import open_image
from recbole_dppmg.errors import DPPMGError
from recbole_dppmg.generators.base import Catalogue
from recbole_dppmg.generators.prompts import about, attributes_of, name_of
from recbole_dppmg.generators.targets import listed
from recbole_dppmg.model import codes as residual
from recbole_dppmg.types import ImageRequest, ImageResult, Item, TextRequest, TextResult


class Untrained:
    """A head without parameters: nothing to train, nothing to save."""

    def __init__(self, model: str, codebooks: Mapping[str, Tensor], settings: Any, seed: int):
        self.codebooks = codebooks

    def parameters(self) -> list[nn.Parameter]:
        return []

    def save(self, directory: str | Path) -> None:
        pass

    def load(self, directory: str | Path) -> None:
        pass


class TemplateHead(Untrained):
    """One sentence of the item's own metadata, the same for every user."""

    name = "template"

    def generate(self, batch: Sequence[TextRequest]) -> list[TextResult]:
        """One sentence per request, in order."""
        return [TextResult(sentence(request.item)) for request in batch]


def sentence(item: Item) -> str:
    """The item's metadata as a sentence.

    >>> sentence(Item("1", "Up", "", ("Animation", "Drama"), 2009))
    'Up, from 2009, is in Animation and Drama.'
    >>> sentence(Item("2", "Red shoes", "Red shoes. Made of leather."))
    'Red shoes: Made of leather.'
    """
    name, kinds, told = name_of(item), attributes_of(item), about(item)
    when = f", from {item.year}," if item.year else ""
    if kinds:
        return f"{name}{when} is in {listed(kinds)}."
    if told:
        return f"{name}: {told.rstrip(' .')}."
    return f"{name}{when} is recommended to you."


class NearestHead(Untrained):
    """The image of the catalogue that is closest to the user's image preference, whatever the item."""

    name = "nearest"

    _paths: Sequence[Path] = ()

    def attach(self, catalogue: Catalogue) -> None:
        """Take the catalogue whose images are shown."""
        rows = [row for row, item in enumerate(catalogue.items) if item.image]
        self._paths = [catalogue.items[row].image for row in rows]
        if rows:
            self._vectors = catalogue.space.item_preference["image"][rows]

    def generate(self, batch: Sequence[ImageRequest]) -> list[ImageResult]:
        """One image per request, in order; `error` where the user has no image tokens or there is no image."""
        return [self._nearest(request) for request in batch]

    def _nearest(self, request: ImageRequest) -> ImageResult:
        codes = (request.tokens or {}).get("image")
        if not codes or not self._paths:
            return ImageResult(None, "nearest: no image tokens, or no catalogue image, to go by")
        preference = residual.decode(torch.tensor([codes]), self.codebooks["image"])[0]
        best = int((self._vectors @ preference).argmax())
        try:
            return ImageResult(open_image(self._paths[best]))
        except DPPMGError as error:
            return ImageResult(None, str(error))
