"""Decoupled cross-attention: preference tokens get keys and values of their own (IP-Adapter, arXiv 2308.06721)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DecoupledAttention(nn.Module):
    """An attention processor that adds `scale * W_out Attention(Q, K_p, V_p)` to what the base one gives.

    The base processor is left as it is, so at scale 0 the sum is the base pipeline bit for bit. Keys start as
    the text's and values as zeros (as in ControlNet, arXiv 2302.05543), so before teaching it is so at any scale.
    """

    def __init__(self, attn: Any, scale: float):
        super().__init__()
        self.base, self.scale = attn.processor, scale
        self.to_k, self.to_v = (_like(layer) for layer in (attn.to_k, attn.to_v))
        with torch.no_grad():
            self.to_k.weight.copy_(attn.to_k.weight)
            self.to_v.weight.zero_()

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attention of `hidden_states` (B, Q, C) over (text states (B, S, W), tokens (B, L, W))."""
        text, tokens = encoder_hidden_states
        out = self.base(attn, hidden_states, text, attention_mask, **kwargs)
        if self.scale == 0:
            return out
        query, key, value = (
            # new layers are float32 whatever the UNet is
            x.to(hidden_states.dtype).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), self.to_k(tokens.float()), self.to_v(tokens.float()))
        )
        found = F.scaled_dot_product_attention(query, key, value, scale=attn.scale).transpose(1, 2).flatten(2)
        return out + self.scale * F.linear(found, attn.to_out[0].weight)


def _like(layer: nn.Linear) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=False, device=layer.weight.device)


def decouple(unet: Any, scale: float) -> nn.ModuleDict:
    """Give every cross-attention of a UNet a `DecoupledAttention`; returns them by name."""
    found = {}
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            found[name.replace(".", "-")] = DecoupledAttention(module, scale)
            module.set_processor(found[name.replace(".", "-")])
    return nn.ModuleDict(found)
