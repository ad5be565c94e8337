"""From continuous user preferences to discrete tokens: residual vector quantization (arXiv 2107.03312)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def default_codes(n_users: int) -> int:
    """K = 2^floor(log2(U / 30)) within 16..256: about 30 or more users to a code.

    >>> default_codes(943), default_codes(100_000)
    (16, 256)
    """
    return min(256, max(16, 2 ** int(math.log2(max(n_users, 30) / 30))))


class Quantizer(nn.Module):
    """L codebooks of K codes, learned by k-means at the first call and by moving averages from then on.

    Codes that fall out of use are restarted at random users. All draws come from `seed` alone; the library
    underneath draws from the global generator, which is put back as it was.
    """

    def __init__(self, size: int, levels: int, n_codes: int, decay: float, kmeans: bool = True, reset: bool = True):
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ

        self.n_codes, self.kmeans = n_codes, kmeans
        self.residual = ResidualVQ(
            dim=size,
            num_quantizers=levels,
            codebook_size=n_codes,
            decay=decay,
            kmeans_init=kmeans,
            kmeans_iters=25,
            threshold_ema_dead_code=2 if reset else 0,
            commitment_weight=1.0,
            rotation_trick=False,
        )

    @property
    def codebooks(self) -> Tensor:
        """float (L, K, d)."""
        return self.residual.codebooks

    def forward(self, vectors: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Quantize users while learning from them.

        Args:
            vectors: float (N, d).
            seed: decides the draws of this call.

        Returns:
            the quantized vectors (N, d), through which gradients pass straight, and the commitment loss, a
            scalar: the mean squared distance at each level, summed.
        """
        devices = [vectors.device] if vectors.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            quantized, _, commitment = self.residual(vectors)
        # the library's own way lets the gradient through once per level
        quantized = vectors + (quantized - vectors).detach()
        return quantized, commitment.sum() * vectors.shape[1]  # the library averages over d

    @torch.no_grad()
    def settle(self, vectors: Tensor, rounds: int, seed: int) -> None:
        """Fit the codebooks to users who no longer change: k-means anew, then `rounds` of moving averages."""
        training = self.training
        self.train()
        if self.kmeans:
            for level in self.residual.layers:
                level._codebook.initted.fill_(False)
        for n in range(rounds):
            self(vectors, seed + n)
        self.train(training)
