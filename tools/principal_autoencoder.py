"""The compact pipeline's autoencoder: a fixed projection on principal components, and a decoder that is trained."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

CHANNELS, WIDTH = 16, 48
LATENT_SIZE = 0.3  # spread of raw latents; the decoder clamps at 3


def autoencoder() -> AutoencoderTiny:
    """128 x 128 pixels to 16 x 16 latents of 16 channels."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(4, 3, 2, 1), latent_channels=CHANNELS,
    )  # fmt: skip


@torch.no_grad()
def principal_autoencoder(images: Tensor) -> AutoencoderTiny:
    """An autoencoder whose encoder is a projection on principal components, and whose decoder starts with what
    they say of each area's mean colour.

    Two convolutions of stride 2 only rearrange pixels, the third projects; a component's two signs travel in
    channels of their own, which the activations in between leave as they are.

    Args:
        images: uint8 (N, 3, 128, 128), what to take the components of.
    """
    model = autoencoder()
    blocks = F.pixel_unshuffle(images.float() / 255, 8)  # channel c * 64 + y * 8 + x
    rows = blocks.permute(0, 2, 3, 1).reshape(-1, 192)
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    # between plain and whitened: small components count less than large ones, but are not lost in the noise
    scale = LATENT_SIZE * values.sqrt().pow(-0.75)
    project = (vectors * scale).T  # (16, 192)
    colour = project.reshape(CHANNELS, 3, 64).mean(2) / scale.unsqueeze(1).pow(2)

    encoder, decoder = model.encoder.layers, model.decoder.layers
    for block in (m for m in model.modules() if type(m).__name__ == "AutoencoderTinyBlock"):
        block.conv[-1].weight.mul_(0.1 if block in decoder else 0)
        block.conv[-1].bias.zero_()
    convolutions = [layer for layer in encoder if isinstance(layer, torch.nn.Conv2d)]
    for layer in convolutions:
        layer.weight.zero_()
    first, second, third, fourth, last = convolutions
    first.bias.zero_()
    first.weight[range(3), range(3), 1, 1] = 1
    for layer, known in ((second, 3), (third, 12)):
        for n in range(4 * known):
            layer.weight[n, n % known, 1 + n // known // 2, 1 + n // known % 2] = 1
    for n in range(48):  # channel n of 4 x 4 pixels, then its place among 2 x 2 of those
        c = n % 3
        for dy in range(2):
            for dx in range(2):
                # the stride-2 steps nest: the first one's offset is the finest
                row = _offset(n // 3 % 4 // 2, n // 12 // 2, dy) * 8 + _offset(n // 3 % 2, n // 12 % 2, dx)
                weights = project[:, c * 64 + row]
                fourth.weight[:CHANNELS, n, 1 + dy, 1 + dx] = weights
                fourth.weight[CHANNELS : 2 * CHANNELS, n, 1 + dy, 1 + dx] = -weights
    last.weight[range(CHANNELS), range(CHANNELS), 1, 1] = 1
    last.weight[range(CHANNELS), range(CHANNELS, 2 * CHANNELS), 1, 1] = -1
    last.bias.copy_(-project @ mean)

    convolutions = [layer for layer in decoder if isinstance(layer, torch.nn.Conv2d)]
    channels = torch.arange(CHANNELS)
    for layer in convolutions:
        layer.weight.mul_(0.1)
        if layer.bias is not None:
            layer.bias.zero_()
    convolutions[0].weight[channels, channels, 1, 1] += 1
    convolutions[0].weight[channels + CHANNELS, channels, 1, 1] -= 1
    for layer in convolutions[1:-1]:
        layer.weight[torch.arange(WIDTH), torch.arange(WIDTH), 1, 1] += 1
    convolutions[-1].weight[:, :CHANNELS, 1, 1] += colour.T
    convolutions[-1].weight[:, CHANNELS : 2 * CHANNELS, 1, 1] -= colour.T
    convolutions[-1].bias.copy_(mean.reshape(3, 64).mean(1))
    return model


def _offset(finest: int, middle: int, coarsest: int) -> int:
    return finest + 2 * middle + 4 * coarsest
