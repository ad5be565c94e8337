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


class _LogSumExp(torch.autograd.Function):
    """`logsumexp(users items^T + bias)` per row where `known` is False, one (R, M) table for both passes."""

    @staticmethod
    def forward(ctx, users, items, bias, known):
        table = torch.addmm(bias, users, items.T).masked_fill_(known, -torch.inf)
        top = table.amax(1, keepdim=True).clamp_min_(torch.finfo(table.dtype).min)  # all known: -inf, not NaN
        total = table.sub_(top).exp_().sum(1)
        ctx.save_for_backward(users, items)
        ctx.table, ctx.total = table, total
        return total.log() + top.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        users, items = ctx.saved_tensors
        table, ctx.table = ctx.table, None  # used up, as above
        table.mul_((gradient / ctx.total.clamp_min(torch.finfo(table.dtype).tiny)).unsqueeze(1))
        return table @ items, table.T @ users, table.sum(0), None


def sampled_softmax_loss(
    users: Tensor,
    items: Tensor,
    row: Tensor,
    positive: Tensor,
    weight: Tensor,
    tau: float,
    bias: Tensor,
    negatives: Tensor,
    log_q: Tensor,
    known: Tensor,
) -> Tensor:
    """The same over shared negatives, each corrected by how likely it was drawn (Bengio & Senecal 2008); a user's
    other positives are no negatives.

    Args:
        users, items, row, positive, weight, tau, bias: as in `softmax_loss`.
        negatives: int64 (M,), distinct items.
        log_q: float (M,), log of each negative's probability to be among the M.
        known: bool (R, M), negatives that are training items of that user; they do not take part.
    """
    users = users / tau
    own = (users.index_select(0, row) * items.index_select(0, positive)).sum(1) + bias.index_select(0, positive)
    chosen = bias.index_select(0, negatives) - log_q
    others = _LogSumExp.apply(users, items.index_select(0, negatives), chosen, known)
    own = own.masked_fill(weight == 0, 0)  # 0 times infinity is not 0
    return (weight * (torch.logaddexp(own, others.index_select(0, row)) - own)).sum()


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
