"""The losses of stage 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_loss(users: Tensor, items: Tensor, row: Tensor, positive: Tensor, tau: float, candidate: Tensor) -> Tensor:
    """`-log softmax(<u, i> / tau)` of the positives over all candidate items (Mult-VAE, arXiv 1802.05814).

    Args:
        users: float (R, d), unit vectors, each user once.
        items: float (I, d), unit vectors.
        row: int64 (B,), whose interaction it is, as a row of `users`.
        positive: int64 (B,), the item; must be a candidate.
        candidate: bool (I,), the items that take part.

    Returns:
        float (B,).
    """
    logits = (users @ items.T / tau).masked_fill(~candidate, -torch.inf)
    return logits.logsumexp(1)[row] - logits[row, positive]


def sampled_softmax_loss(
    users: Tensor, items: Tensor, positive: Tensor, tau: float, negatives: Tensor, log_q: Tensor, known: Tensor
) -> Tensor:
    """The same over shared negatives, each corrected by how likely it was drawn (Bengio & Senecal 2008).

    Args:
        users: float (B, d), unit vectors, the user of each interaction.
        items: float (I, d), unit vectors.
        positive: int64 (B,).
        negatives: int64 (M,), distinct items.
        log_q: float (M,), log of each negative's probability to be among the M.
        known: bool (B, M), negatives that are training items of that user; they do not take part.

    Returns:
        float (B,).
    """
    own = (users * items[positive]).sum(1, keepdim=True) / tau
    others = (users @ items[negatives].T / tau - log_q).masked_fill(known, -torch.inf)
    return torch.cat([own, others], 1).logsumexp(1) - own.squeeze(1)


def alignment_loss(first: Tensor, second: Tensor, items: Tensor, tau: float = 0.2) -> Tensor:
    """Symmetric InfoNCE between two views of the same items (arXiv 1807.03748).

    Args:
        first, second: float (B, d), unit vectors.
        items: int64 (B,), which item each row is; repetitions are not negatives of each other.
    """
    logits = first @ second.T / tau
    twin = (items.unsqueeze(0) == items.unsqueeze(1)).fill_diagonal_(False)
    logits = logits.masked_fill(twin, -torch.inf)
    target = torch.arange(len(items), device=items.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
