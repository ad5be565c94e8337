"""What the phases of one run share: the data they learn from and what the earlier ones have learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from recbole_dppmg.settings import Settings
from recbole_dppmg.trainer.checkpoint import Checkpoints
from recbole_dppmg.trainer.tracking import Tracker
from recbole_dppmg.types import ImageRequest, Item, PreferenceTokens, TextRequest

if TYPE_CHECKING:
    from recbole_dppmg.model.joint_space import JointSpace
    from recbole_dppmg.model.space import PreferenceSpace

R = TypeVar("R", TextRequest, ImageRequest)


@dataclass
class RunState:
    """Inputs of the generation phases, and their results.

    `pairs` is int64 (P, 2): the training interactions as (user, item) rows. `features` holds, per modality,
    the frozen item features float32 (I, D) and their mask (I,). Row 0 is padding. `reviews` holds what the user of
    each pair wrote of its item, or None; it is None where the dataset has no texts of that kind.
    """

    settings: Settings
    seed: int
    tracker: Tracker
    items: Sequence[Item]
    pairs: Tensor
    features: dict[str, tuple[Tensor, Tensor]]
    space: PreferenceSpace
    glossary: dict[str, dict[str, list[str]]]
    reviews: Sequence[str | None] | None = None
    heads: dict[str, object] = field(default_factory=dict)
    joint: JointSpace | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    def shown(self, modality: str) -> Tensor:
        """Which items have a text or an image to learn from: bool (I,)."""
        return torch.tensor([bool(item.text if modality == "text" else item.image) for item in self.items])

    def requests(self, kind: type[R], items: Tensor, tokens: Sequence[PreferenceTokens], seed: int = 0) -> list[R]:
        """A `TextRequest` or `ImageRequest` for each item row, int64 (B,), and tokens."""
        return [kind(self.items[i], own, seed) for i, own in zip(items.tolist(), tokens, strict=True)]


def as_tokens(codes: dict[str, Tensor]) -> list[PreferenceTokens]:
    """Codes per modality, int64 (P, L) each, as one record of preference tokens per row."""
    columns = {modality: table.tolist() for modality, table in codes.items()}
    rows = len(next(iter(columns.values())))
    return [{modality: tuple(table[row]) for modality, table in columns.items()} for row in range(rows)]
