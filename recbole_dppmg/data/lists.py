"""Lists of items per user, as two flat arrays (compressed sparse rows)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ItemLists(NamedTuple):
    """Row r owns `items[offsets[r] : offsets[r + 1]]`, in ascending order.

    offsets: int64 (R + 1,); items: int64 (E,).
    """

    offsets: Tensor
    items: Tensor

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> ItemLists:
        """From Python lists; a list's repeated items count once.

        >>> ItemLists.of([[5, 2], []]).items
        tensor([2, 5])
        """
        sizes = torch.tensor([len(items) for items in lists], dtype=torch.int64)
        rows = torch.arange(len(lists)).repeat_interleave(sizes)
        items = torch.tensor([item for items in lists for item in items], dtype=torch.int64)
        return cls.from_pairs(rows, items, len(lists))

    @classmethod
    def from_pairs(cls, rows: Tensor, items: Tensor, n_rows: int) -> ItemLists:
        """From (row, item) pairs, int64 (E,) each; repeated pairs count once."""
        width = int(items.max()) + 1 if len(items) else 1
        keys = torch.unique(rows * width + items)
        sizes = torch.bincount(keys // width, minlength=n_rows)
        return cls(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), keys % width)

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
        return ItemLists(offsets, self.items[self.offsets[rows].repeat_interleave(sizes) + within])

    def to(self, device: torch.device) -> ItemLists:
        """A copy on the device."""
        return ItemLists(self.offsets.to(device), self.items.to(device))

    def sum(self, table: Tensor) -> Tensor:
        """Sum of the items' rows of a table, float (I, D) to (R, D); zero for an empty list."""
        total = table.new_zeros(len(self.offsets) - 1, table.shape[1])
        return total.index_add_(0, self.rows, table[self.items])

    def mask_(self, scores: Tensor, value: float = -torch.inf) -> Tensor:
        """Overwrite each row's items in scores (R, I) in place; returns `scores`."""
        scores[self.rows, self.items] = value
        return scores
