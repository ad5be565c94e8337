"""From frozen features to the vectors that propagation starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def project(features: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """x = LN(P f): float (B, D) to (B, d)."""
    return F.layer_norm(F.linear(features, weight, bias), bias.shape, norm_weight, norm_bias)


class ContentProjection(nn.Module):
    """x_i = LN(P f_i), and one learned vector for every item without the modality."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.linear = nn.Linear(width, size)
        self.norm = nn.LayerNorm(size)
        self.missing = nn.Parameter(torch.randn(size))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """features float (I, D), present bool (I,), to float (I, d)."""
        return torch.where(present.unsqueeze(1), project(features, **self.tensors()), self.missing)

    def tensors(self) -> dict[str, Tensor]:
        """The arguments of `project` beside the features."""
        return {
            "weight": self.linear.weight,
            "bias": self.linear.bias,
            "norm_weight": self.norm.weight,
            "norm_bias": self.norm.bias,
        }
