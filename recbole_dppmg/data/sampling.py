"""Training batches and negatives, drawn as whole arrays on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from recbole_dppmg.data.lists import ItemLists


def shuffled_batches(pairs: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Every interaction once, in random order.

    Args:
        pairs: int64 (2, E), users and items.
        size: interactions per batch; the last one may be smaller.
    """
    order = torch.randperm(pairs.shape[1], generator=generator, device=pairs.device)
    for rows in order.split(size):
        yield pairs[:, rows]


class SharedNegatives:
    """Draws items that a whole batch shares as negatives, by popularity to a power (0: uniform)."""

    def __init__(self, positives: ItemLists, n_items: int, number: int, power: float):
        """Args: positives, the users' training items; number, negatives per draw."""
        self.positives = positives
        self.number = min(number, n_items - 1)
        weight = torch.bincount(positives.items, minlength=n_items).clamp_min(1).double() ** power
        weight[0] = 0  # padding
        self.weight = weight / weight.sum()
        # the chance to be among the M that are drawn, as if they were drawn with replacement
        self.log_q = torch.log(-torch.expm1(self.number * torch.log1p(-self.weight))).to(torch.float32)

    def draw(self, users: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Negatives for a batch of users, int64 (B,).

        Returns:
            items int64 (M,), distinct; log of their chance to be drawn, float (M,); and bool (B, M), which of
            them are training items of the user and so no negatives.
        """
        # the M largest of log(weight) + Gumbel noise are a draw without replacement (arXiv 1903.06059)
        noise = torch.rand(len(self.weight), generator=generator, device=users.device, dtype=torch.float64)
        items = (self.weight.log() - (-noise.log()).log()).topk(self.number).indices
        place = torch.full((len(self.weight),), -1, device=users.device)
        place[items] = torch.arange(self.number, device=users.device)
        lists = self.positives.take(users)
        column = place[lists.items]
        known = torch.zeros(len(users), self.number + 1, dtype=torch.bool, device=users.device)
        known[lists.rows, column] = True  # -1 lands in the spare last column
        return items, self.log_q[items], known[:, :-1]
