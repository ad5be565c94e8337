"""Denoising as a policy, for rewards without a gradient (DDPO, arXiv 2305.13301).

Every step of a sampler that draws noise of its own (DDIM with eta = 1, arXiv 2010.02502) is a draw from a Gaussian,
whose log-density has gradient to the preference tokens: what a reward says of the image can be followed back to
each step without passing through the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_dppmg.generators.diffusion import DiffusionHead
from recbole_dppmg.generators.pipelines import Prompts
from recbole_dppmg.types import ImageRequest


def ddim_step(prediction: Tensor, latents: Tensor, alpha: Tensor, after: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the next latents (arXiv 2010.02502, equations 12 and 16 with eta = 1).

    Args:
        prediction: float (B, C, h, w), of the noise, the clean latents or the velocity (arXiv 2202.00512).
        latents: float (B, C, h, w), those of this step.
        alpha, after: float (), share of signal in the variance (alpha bar) at this step and after it.
        kind: `epsilon`, `sample` or `v_prediction`.

    Returns:
        float (B, C, h, w) and float ().

    >>> x, noise = torch.tensor([1.0]), torch.tensor([0.5])
    >>> mean, std = ddim_step(noise, x, torch.tensor(0.5), torch.tensor(1.0), "epsilon")
    >>> mean, std  # the last step: the clean latents, (1 - sqrt(.5) .5) / sqrt(.5), for certain
    (tensor([0.9142]), tensor(0.))
    """
    signal, rest = alpha.sqrt(), (1 - alpha).sqrt()
    if kind == "epsilon":
        clean, noise = (latents - rest * prediction) / signal, prediction
    elif kind == "sample":
        clean, noise = prediction, (latents - signal * prediction) / rest
    else:
        clean, noise = signal * latents - rest * prediction, signal * prediction + rest * latents
    variance = (1 - after) / (1 - alpha) * (1 - alpha / after)
    return after.sqrt() * clean + (1 - after - variance).clamp_min(0).sqrt() * noise, variance.sqrt()


def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of x (B, ...) under a Gaussian, as the mean over its numbers, so that one clip suits all sizes.

    >>> log_density(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor(1.0))
    tensor([-0.9189])
    """
    return (-((x - mean) / std).square() / 2).flatten(1).mean(1) - std.log() - math.log(2 * math.pi) / 2


@dataclass
class Walk:
    """B ways from noise to an image by S draws and a last step that draws nothing.

    `images` is float32 (B, 3, size, size) in [0, 1] on the CPU; `latents` float32 (S + 1, B, C, h, w), the noise and
    what was drawn; `plain` float32 (2, S, B, C, h, w), the predictions without text and with the text alone, in which
    tokens have no part.
    """

    images: Tensor
    latents: Tensor
    plain: Tensor
    prompts: Prompts
    requests: Sequence[ImageRequest]


class DenoisingPolicy:
    """The diffusion head as a policy over images: walks, and how likely their draws are as its tokens are now."""

    def __init__(self, head: DiffusionHead):
        from diffusers import DDIMScheduler

        head.backbone.resident()
        self.head, settings = head, head.settings
        scheduler = DDIMScheduler.from_config(head.backbone.pipeline.scheduler.config)
        scheduler.set_timesteps(settings.sampling_steps)
        self._kind, self._times = scheduler.config.prediction_type, scheduler.timesteps
        self._alphas = scheduler.alphas_cumprod[self._times].float()
        self._after = torch.cat([self._alphas[1:], scheduler.final_alpha_cumprod.float().view(1)])
        text, preference = settings.guidance_text, settings.guidance_preference
        self._weights = (1 - text, text - preference, preference)  # as in `Denoiser`

    @torch.no_grad()
    def walk(self, requests: Sequence[ImageRequest], seed: int) -> Walk:
        """Sample B requests. Equal ones start from the same noise and draw different noise on the way: what one gained
        over the other is then due to the draws, which are what is learned from (as in arXiv 2505.07818)."""
        head, shape = self.head, (len(requests), *self.head.backbone.latent_shape)
        device, generator = head.backbone.device, torch.Generator().manual_seed(seed)
        both = head._prompts(requests)
        nothing, prompts = (both.take(rows) for rows in torch.arange(2 * len(requests)).chunk(2))
        null, tokens = head.projector.null.expand(len(requests), -1, -1), self._tokens(requests)
        start = torch.randn(shape, generator=generator)[[requests.index(request) for request in requests]]
        latents, plain = [start.to(device)], []
        for step, t in enumerate(self._times):
            now = latents[-1]
            parts = head.denoiser.predict(
                now.repeat(3, 1, 1, 1), t, Prompts.cat([nothing, prompts, prompts]), torch.cat([null, null, tokens])
            ).chunk(3)
            mean, std = self._step(parts, now, step)
            if step + 1 == len(self._times):
                images = head.backbone.decode(mean).cpu()
                break
            latents.append(mean + std * torch.randn(shape, generator=generator).to(device))
            plain.append(torch.stack(parts[:2]))
        return Walk(images, torch.stack(latents), torch.stack(plain, 1), prompts, requests)

    def log_probs(self, walk: Walk, step: int) -> tuple[Tensor, Tensor]:
        """Log-densities of one step's draws as the tokens are now, float32 (B,), and how far the tokens move the
        prediction, `mean (eps(c,p) - eps(c,0))^2`, float32 (); both with gradient to what tokens go through."""
        nothing, text = walk.plain[:, step]
        tokens = self._tokens(walk.requests)
        personal = self.head.denoiser.predict(walk.latents[step], self._times[step], walk.prompts, tokens)
        mean, std = self._step((nothing, text, personal), walk.latents[step], step)
        return log_density(walk.latents[step + 1], mean, std), (personal - text).square().mean()

    def _tokens(self, requests: Sequence[ImageRequest]) -> Tensor:
        return self.head.projector(*self.head._encode_tokens(requests))

    def _step(self, parts: Sequence[Tensor], latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        guided = sum(weight * part for weight, part in zip(self._weights, parts, strict=True))
        alpha, after = (table[step].to(latents.device) for table in (self._alphas, self._after))
        return ddim_step(guided, latents, alpha, after, self._kind)
