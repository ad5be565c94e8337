"""Means with bootstrap intervals, and a sign test of pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_RESAMPLES = 2000
_LEVEL = 0.95


def interval(values: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """The mean of independent values and its 95 % percentile bootstrap interval (Efron, 1979).

    Args:
        values: float (n,), at least one; NaN are left out.

    Returns:
        mean, low, high; NaN where nothing is left.

    >>> interval(torch.tensor([1.0, 1.0]))
    (1.0, 1.0, 1.0)
    """
    values = values.double()
    values = values[~values.isnan()]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (_RESAMPLES, len(values)), generator=generator)
    tail = (1 - _LEVEL) / 2
    low, high = values[draws].mean(1).quantile(torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return values.mean().item(), low, high


def with_intervals(samples: Mapping[str, Tensor], seed: int = 0) -> dict[str, float]:
    """`name`, `name.low` and `name.high` of each sample float (n,); those of which nothing is left are left out."""
    found = {}
    for name, values in samples.items():
        mean, low, high = interval(values, seed)
        if mean == mean:
            found |= {name: mean, f"{name}.low": low, f"{name}.high": high}
    return found


def sign_test(differences: Tensor) -> float:
    """One-sided p of as many positive ones among paired differences (n,), were they as often negative; ties are
    left out (Dixon and Mood, 1946).

    >>> sign_test(torch.tensor([1.0, 2.0, 0.0, 3.0]))
    0.125
    """
    from scipy.stats import binomtest

    positive, negative = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(positive, positive + negative, alternative="greater").pvalue) if positive + negative else 1.0
