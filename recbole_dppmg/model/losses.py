"""The losses of stage 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _SoftmaxLoss(torch.autograd.Function):
    """One (R, I) table for both passes, rewritten in place: logits, then probabilities, then gradients."""

    @staticmethod
    def forward(ctx, users, items, row, positive, weight, bias):
        table = torch.addmm(bias, users, items.T)
        place = row * table.shape[1] + positive
        own = table.view(-1)[place]
        top = table.amax(1, keepdim=True)
        total = table.sub_(top).exp_().sum(1)
        ctx.save_for_backward(users, items, row, place, weight)
        ctx.table, ctx.total = table, total
        terms = (total.log() + top.squeeze(1))[row] - own
        return (weight * terms.masked_fill(weight == 0, 0)).sum()  # 0 times infinity is not 0

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        users, items, row, place, weight = ctx.saved_tensors
        shares = torch.zeros_like(ctx.total).index_add_(0, row, weight)
        table, ctx.table = ctx.table, None  # used up: a second backward fails rather than lies
        table.mul_((gradient * shares / ctx.total).unsqueeze(1))
        table.view(-1).scatter_add_(0, place, -gradient * weight)  # far cheaper than index_put_ on a CPU
        return table @ items, table.T @ users, None, None, None, table.sum(0)


def softmax_loss(
    users: Tensor, items: Tensor, row: Tensor, positive: Tensor, weight: Tensor, tau: float, bias: Tensor
) -> Tensor:
    """`-log softmax(<u, i> / tau)` of the positives over all items (arXiv 1802.05814), as a weighted sum.

    Args:
        users: float (R, d), unit vectors, each user once.
        items: float (I, d), unit vectors.
        row: int64 (B,), whose interaction it is, as a row of `users`.
        positive: int64 (B,), the item.
        weight: float (B,).
        bias: float (I,), added to the logits; -inf for items that do not take part, which no weighted
            positive may be.
    """
    return _SoftmaxLoss.apply(users / tau, items, row, positive, weight, bias)


def sampled_softmax_loss(
    users: Tensor,
    items: Tensor,
    positive: Tensor,
    weight: Tensor,
    tau: float,
    negatives: Tensor,
    log_q: Tensor,
    known: Tensor,
    bias: Tensor,
) -> Tensor:
    """The same over shared negatives, each corrected by how likely it was drawn (Bengio & Senecal 2008).

    Args:
        users: float (B, d), unit vectors, the user of each interaction.
        items: float (I, d), unit vectors.
        positive: int64 (B,).
        weight: float (B,).
        negatives: int64 (M,), distinct items.
        log_q: float (M,), log of each negative's probability to be among the M.
        known: bool (B, M), negatives that are training items of that user; they do not take part.
        bias: float (I,), added to the logits.
    """
    own = (users * items[positive]).sum(1, keepdim=True) / tau + bias[positive].unsqueeze(1)
    others = (users @ items[negatives].T / tau + bias[negatives] - log_q).masked_fill(known, -torch.inf)
    return (weight * (torch.cat([own, others], 1).logsumexp(1) - own.squeeze(1))).sum()


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
