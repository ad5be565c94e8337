"""Denoising with a prompt and preference tokens, each with a guidance scale of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recbole_dppmg.generators.pipelines import Backbone, Prompts
from recbole_dppmg.settings import Settings

_REWARD_STEPS = 10
_REWARD_WINDOW = (0.2, 0.6)  # of the noise schedule
_AMPLIFIED = 2.0**10


class Denoiser:
    """What a pipeline makes of noise, prompts and tokens.

    Guidance is `eps(0,0) + g_text [eps(c,0) - eps(0,0)] + g_pref [eps(c,p) - eps(c,0)]` (after arXiv 2211.09800),
    a weighted sum of three predictions, whose weights add up to 1. One without weight is not computed, so
    `g_text = g_pref` costs no more than guidance without preference.
    """

    def __init__(self, backbone: Backbone, settings: Settings):
        self.backbone = backbone
        self.decoupled = settings.image_injection == "decoupled"
        self.steps = settings.sampling_steps
        text, preference = settings.guidance_text, settings.guidance_preference
        self._weights = (1 - text, text - preference, preference)

    def predict(self, latents: Tensor, t: Tensor, prompts: Prompts, tokens: Tensor) -> Tensor:
        """The prediction for each row, float32 (B, C, h, w).

        Args:
            latents: float (B, C, h, w).
            t: time, () or (B,).
            prompts: B of them.
            tokens: float32 (B, L, W); gradient reaches them.
        """

        def call(tokens: Tensor) -> Tensor:
            if self.decoupled:
                states = (prompts.states, tokens)
            else:
                states = torch.cat([prompts.states, tokens.to(prompts.states.dtype)], dim=1)
            return self.backbone.predict(latents, t, states, prompts.added)

        return self._amplified(call, tokens)

    @torch.no_grad()
    def sample(self, noise: Tensor, prompts: Prompts, null: Tensor, tokens: Tensor | None) -> Tensor:
        """Images float32 (B, 3, size, size) in [0, 1].

        Args:
            noise: float32 (B, C, h, w).
            prompts: 2B, unconditional ones first.
            null: float32 (L, W), the tokens of no preference.
            tokens: float32 (B, L, W); None: no preference.
        """
        scheduler = self._scheduler(self.steps)
        guided = self._guidance(prompts, null, tokens)
        latents = noise.to(self.backbone.device)
        for t in scheduler.timesteps:
            latents = scheduler.step(guided(latents, t), t, latents).prev_sample
        return self.backbone.decode(latents)

    def middle_step(
        self, noise: Tensor, prompts: Prompts, null: Tensor, tokens: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images predicted in one step, with gradient, from a random middle time that was reached without
        (ReFL, arXiv 2304.05977), and how far the tokens moved that prediction, `mean (eps(c,p) - eps(c,0))^2`.

        Arguments as in `sample`; gradient reaches `tokens` only.
        """
        scheduler = self._scheduler(_REWARD_STEPS)
        low, high = (share * scheduler.config.num_train_timesteps for share in _REWARD_WINDOW)
        stops = [n for n, t in enumerate(scheduler.timesteps.tolist()) if n and low <= t <= high]
        stop = stops[int(torch.randint(len(stops), (), generator=generator))]
        size, latents = len(noise), noise.to(self.backbone.device)
        with torch.no_grad():
            null = null.detach()
            guided = self._guidance(prompts, null, tokens.detach())
            for t in scheduler.timesteps[:stop]:
                latents = scheduler.step(guided(latents, t), t, latents).prev_sample
            t = scheduler.timesteps[stop]
            plain = self.predict(latents.repeat(2, 1, 1, 1), t, prompts, null.expand(2 * size, -1, -1))
        nothing, text = plain.chunk(2)
        personal = self.predict(latents, t, prompts.take(torch.arange(size, 2 * size)), tokens)
        total = sum(w * part for w, part in zip(self._weights, (nothing, text, personal), strict=True))
        images = self._amplified(self.backbone.decode, scheduler.convert_model_output(total, sample=latents))
        return images, (personal - text).square().mean()

    def _guidance(self, prompts: Prompts, null: Tensor, tokens: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided prediction as a function of latents and time; one call of the UNet."""
        size = len(prompts.states) // 2
        weights = list(self._weights)
        if tokens is None:
            weights = [weights[0], weights[1] + weights[2], 0.0]
        blank = null.expand(size, -1, -1)
        branches = list(zip(weights, (0, size, size), (blank, blank, tokens), strict=True))
        kept = [branch for branch in branches if branch[0]]
        rows = torch.cat([torch.arange(start, start + size) for _, start, _ in kept])
        prompts, tokens = prompts.take(rows), torch.cat([tokens for _, _, tokens in kept])

        def guided(latents: Tensor, t: Tensor) -> Tensor:
            parts = self.predict(latents.repeat(len(kept), 1, 1, 1), t, prompts, tokens).chunk(len(kept))
            return sum(weight * part for (weight, _, _), part in zip(kept, parts, strict=True))

        return guided

    def _scheduler(self, steps: int) -> Any:
        """DPM-Solver++ (arXiv 2211.01095) on the pipeline's own noise schedule, without noise of its own."""
        from diffusers import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler.from_config(
            self.backbone.pipeline.scheduler.config, algorithm_type="dpmsolver++"
        )
        scheduler.set_timesteps(steps, device=self.backbone.device)
        return scheduler

    @property
    def amplification(self) -> float:
        """How many times too large gradients are inside the UNet; see `_amplified`."""
        return _AMPLIFIED if self.backbone.dtype == torch.float16 else 1.0

    def _amplified(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function(x)`; in half precision with its gradient scaled up inside, where it would vanish."""
        if self.amplification == 1 or not torch.is_grad_enabled():
            return function(x)
        return _ScaleGradient.apply(function(_ScaleGradient.apply(x, 1 / self.amplification)), self.amplification)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None
