"""Where a generator's preference tokens start: `A(codebook) + delta`, delta learned from zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recbole_dppmg.types import token_name


def vocabulary(codebooks: Mapping[str, Tensor]) -> list[str]:
    """Names of all preference tokens, in the order of `initial_rows`.

    >>> vocabulary({"text": torch.zeros(2, 2, 8)})
    ['<text_0_0>', '<text_0_1>', '<text_1_0>', '<text_1_1>']
    """
    return [
        token_name(modality, level, code)
        for modality, table in codebooks.items()
        for level in range(table.shape[0])
        for code in range(table.shape[1])
    ]


def initial_rows(codebooks: Mapping[str, Tensor], embeddings: Tensor, seed: int) -> Tensor:
    """Starting embeddings of the preference tokens, so that tokens near in taste are near in the generator.

    A(c) is the vocabulary's mean plus the codebook vector, projected by a fixed Gaussian matrix (one per
    modality, drawn from `seed`) and scaled so that each level has the vocabulary's spread in each dimension.

    Args:
        codebooks: float (L, K, d) per modality.
        embeddings: float (V, D), the generator's own vocabulary.
        seed: of the projection.

    Returns:
        float32 (N, D), N = sum of L * K, rows as `vocabulary` names them.
    """
    embeddings = embeddings.detach().float()
    mean, spread = embeddings.mean(0), embeddings.std(0)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for table in codebooks.values():
        projection = torch.randn(table.shape[-1], embeddings.shape[1], generator=generator)
        projected = table.detach().float().cpu() @ projection
        # levels of a residual quantizer shrink; the generator should hear each of them
        scale = projected.pow(2).mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        rows.append((projected / scale).flatten(0, 1))
    return mean + torch.cat(rows).to(mean.device) * spread
