"""Group relative policy optimisation (arXiv 2402.03300), with the wider upper clip of DAPO (arXiv 2503.14476)."""

from __future__ import annotations

import torch
from torch import Tensor


def grpo_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor,
    advantages: Tensor,
    mask: Tensor,
    kl: float = 0.01,
    clip: tuple[float, float] = (0.2, 0.28),
) -> Tensor:
    """The clipped policy loss plus `kl` times the divergence from the reference, averaged over all tokens.

    With r = exp(new - old) the policy part of a token is `-min(r A, clip(r, 1 - low, 1 + high) A)`. The divergence
    is estimated by `exp(d) - d - 1`, d = reference - new (k3, http://joschu.net/blog/kl-approx.html): unbiased
    and never negative.

    Args:
        new: (N, T), log-probabilities of the sampled tokens under the policy; gradient flows.
        old: (N, T), the same when they were sampled.
        reference: (N, T), the same under the model that the policy shall stay near.
        advantages: (N,), of each sample against its group.
        mask: bool (N, T), which tokens count.
        kl: weight of the divergence.
        clip: how far r may go below and above 1.

    Returns:
        float32 (), lower is better.

    >>> new = torch.tensor([[-1.0, -2.0], [-1.0, -3.0]])
    >>> grpo_loss(new, new, new, torch.tensor([1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool))
    tensor(0.)
    >>> better = new + torch.tensor([[0.1], [-0.1]])
    >>> grpo_loss(better, new, new, torch.tensor([1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool), kl=0.0)
    tensor(-0.1002)
    """
    # where nothing counts the differences may be anything, even infinite: they must not reach the gradient
    new, old, reference = (x.float().masked_fill(~mask, 0.0) for x in (new, old, reference))
    ratio = (new - old.detach()).exp()
    advantages = advantages.detach().to(new.device).unsqueeze(1)
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantages)
    distance = reference.detach() - new
    divergence = distance.exp() - distance - 1
    return ((kl * divergence - gain) * mask).sum() / mask.sum().clamp_min(1)
