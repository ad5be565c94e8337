"""From a user's codes to states that cross-attention reads: `tok_l = Proj(C[l, id_l]) + p_l`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HIDDEN = 256


class TokenProjector(nn.Module):
    """An MLP over codebook vectors, an embedding per level, and learned tokens that stand for "no preference".

    Zeros would not mean "nothing": they take their share of the softmax. At the start the null tokens are the
    states of an empty prompt's padding, which the generator has learned to read as nothing, and the others have
    the mean and the spread of text states, hence their RMS.

    Args:
        codebook: float (L, K, d).
        states: float (N, W), text states that give the scale.
        padding: float (L, W), states that start the null tokens.
        seed: of the MLP's weights.
    """

    def __init__(self, codebook: Tensor, states: Tensor, padding: Tensor, seed: int):
        super().__init__()
        levels, _, width = codebook.shape
        codebook = codebook.detach().float().cpu()
        # levels of a residual quantizer shrink; the generator should hear each of them
        scale = codebook.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        self.register_buffer("codes", codebook / scale, persistent=False)
        states = states.detach().float().cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.mlp = nn.Sequential(nn.Linear(width, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, states.shape[1]))
        self.level = nn.Parameter(states.mean(0).repeat(levels, 1))
        self.null = nn.Parameter(padding.detach().float().cpu().clone())
        with torch.no_grad():
            out = self.mlp(self.codes).flatten(0, 1)
            last = self.mlp[2]
            ratio = states.std(0) / out.std(0).clamp_min(1e-6)
            last.weight.mul_(ratio.unsqueeze(1))
            last.bias.copy_((last.bias - out.mean(0)) * ratio)

    def forward(self, codes: Tensor, present: Tensor) -> Tensor:
        """Tokens float32 (B, L, W).

        Args:
            codes: int64 (B, L).
            present: bool (B,); where false, the null tokens.
        """
        vectors = self.codes[torch.arange(codes.shape[1], device=codes.device), codes]
        return torch.where(present[:, None, None], self.mlp(vectors) + self.level, self.null)
