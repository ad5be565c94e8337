"""Lists of items per user, as flat arrays (compressed sparse rows)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 0.02  # of the latest item's weight: what was liked long ago counts little, but together it still tells


class ItemLists(NamedTuple):
    """Row r owns `items[offsets[r] : offsets[r + 1]]`, in ascending order.

    offsets: int64 (R + 1,); items: int64 (E,); weights: float32 (E,), how much an item counts in `mean`; None:
    all the same.
    """

    offsets: Tensor
    items: Tensor
    weights: Tensor | None = None

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]], recency: float | None = None) -> ItemLists:
        """From Python lists; a list's repeated items count once. With `recency`, as in `recency_weights`, a list
        runs from the oldest item to the latest.

        >>> ItemLists.of([[5, 2], []]).items
        tensor([2, 5])
        """
        sizes = torch.tensor([len(items) for items in lists], dtype=torch.int64)
        rows = torch.arange(len(lists)).repeat_interleave(sizes)
        items = torch.tensor([item for items in lists for item in items], dtype=torch.int64)
        weights = recency_weights(rows, torch.arange(len(rows)), recency) if recency else None
        return cls.from_pairs(rows, items, len(lists), weights)

    @classmethod
    def from_pairs(cls, rows: Tensor, items: Tensor, n_rows: int, weights: Tensor | None = None) -> ItemLists:
        """From (row, item) pairs, int64 (E,) each; repeated pairs count once, with their largest weight."""
        width = int(items.max()) + 1 if len(items) else 1
        keys, place = torch.unique(rows * width + items, return_inverse=True)
        sizes = torch.bincount(keys // width, minlength=n_rows)
        if weights is not None:
            weights = weights.new_zeros(len(keys)).scatter_reduce_(0, place, weights, "amax")
        return cls(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), keys % width, weights)

    @property
    def sizes(self) -> Tensor:
        """Items per row, int64 (R,)."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """The row of each entry of `items`, int64 (E,)."""
        return torch.arange(len(self.offsets) - 1, device=self.items.device).repeat_interleave(self.sizes)

    def take(self, rows: Tensor) -> ItemLists:
        """The lists of these rows, int64 (B,), in this order."""
        sizes = self.sizes[rows]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        within = torch.arange(int(offsets[-1]), device=rows.device) - offsets[:-1].repeat_interleave(sizes)
        place = self.offsets[rows].repeat_interleave(sizes) + within
        return ItemLists(offsets, self.items[place], None if self.weights is None else self.weights[place])

    def to(self, device: torch.device) -> ItemLists:
        """A copy on the device."""
        return ItemLists(*(None if part is None else part.to(device) for part in self))

    def mean(self, table: Tensor) -> Tensor:
        """Weighted mean of the items' rows of a table, float (I, D) to (R, D); zero for an empty list."""
        return F.embedding_bag(
            self.items, table, self.offsets, mode="sum", per_sample_weights=self.shares, include_last_offset=True
        )

    @property
    def shares(self) -> Tensor:
        """What each entry makes of its row's mean: float32 (E,), sum 1 per row."""
        weights = torch.ones_like(self.items, dtype=torch.float32) if self.weights is None else self.weights
        rows = self.rows
        return weights / weights.new_zeros(len(self.offsets) - 1).index_add_(0, rows, weights)[rows]

    def mask_(self, scores: Tensor, value: float = -torch.inf) -> Tensor:
        """Overwrite each row's items in scores (R, I) in place; returns `scores`."""
        scores[self.rows, self.items] = value
        return scores


def recency_weights(rows: Tensor, times: Tensor, recency: float) -> Tensor:
    """How much each item of a list counts: `0.02 + 0.98 exp(-later / recency)`, with the number of its list's later
    items.

    Args:
        rows: int64 (E,), the list of each entry.
        times: (E,), when; entries of the same time count in the order given.
        recency: items after which one counts e times less.

    Returns:
        float32 (E,), at most 1; the latest item of a list has 1.
    """
    order = torch.argsort(times, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    ends = torch.bincount(rows).cumsum(0)
    later = torch.empty_like(rows)
    later[order] = ends[rows[order]] - 1 - torch.arange(len(rows), device=rows.device)
    return _LEAST + (1 - _LEAST) * torch.exp(-later / recency)
