"""Residual quantization with given codebooks, in plain torch (SoundStream, arXiv 2107.03312)."""

from __future__ import annotations

import torch
from torch import Tensor


def encode(vectors: Tensor, codebooks: Tensor) -> Tensor:
    """The nearest code at each level of what the levels before left over.

    Args:
        vectors: float (N, d).
        codebooks: float (L, K, d).

    Returns:
        int64 (N, L).
    """
    residual, codes = vectors, []
    for codebook in codebooks:
        # |r - c|^2 without |r|^2, which is the same for every code
        distance = codebook.pow(2).sum(1) - 2 * residual @ codebook.T
        nearest = distance.argmin(1)
        residual = residual - codebook[nearest]
        codes.append(nearest)
    return torch.stack(codes, 1)


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The sum of the chosen codes: int64 (N, L) and float (L, K, d) to float (N, d)."""
    levels = torch.arange(codebooks.shape[0], device=codes.device)
    return codebooks[levels, codes].sum(1)


def quantize(vectors: Tensor, codebooks: Tensor) -> Tensor:
    """What the codes keep of the vectors: float (N, d) to (N, d)."""
    return decode(encode(vectors, codebooks), codebooks)


def health(codes: Tensor, n_codes: int) -> dict[str, float]:
    """How well codes are used: `utilization.l` and `perplexity.l` per level (both as a share of K, by the
    exponential of the entropy), and `unique`, the share of users whose tuple of codes nobody else has.

    Args:
        codes: int64 (N, L).
        n_codes: K.
    """
    result = {}
    for level, column in enumerate(codes.T):
        share = torch.bincount(column, minlength=n_codes).double() / len(codes)
        result[f"utilization.{level}"] = (share > 0).double().mean().item()
        result[f"perplexity.{level}"] = torch.special.entr(share).sum().exp().item() / n_codes
    counts = torch.unique(codes, dim=0, return_counts=True)[1]
    result["unique"] = (counts == 1).sum().item() / len(codes)
    return result
