"""Diffusion pipelines as frozen parts: text states, predictions, latents, pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_dppmg.data.encoders import TextEncoder, text_encoder
from recbole_dppmg.errors import AssetError

MAX_SIDE = 2048
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts: `states` (B, S, W); for SDXL `added` with `text_embeds` (B, P), `time_ids` (B, 6)."""

    states: Tensor
    added: dict[str, Tensor]

    def take(self, rows: Tensor) -> Prompts:
        """The prompts at `rows`, int64 (N,)."""
        rows = rows.to(self.states.device)
        return Prompts(self.states[rows], {name: value[rows] for name, value in self.added.items()})

    @staticmethod
    def cat(parts: Sequence[Prompts]) -> Prompts:
        """Prompts one after another."""
        added = {name: torch.cat([part.added[name] for part in parts]) for name in parts[0].added}
        return Prompts(torch.cat([part.states for part in parts]), added)


@torch.no_grad()
def token_states(encoder: TextEncoder, texts: Sequence[str], max_length: int) -> Tensor:
    """What a pipeline without a text encoder of its own is conditioned on, in training as in use: the last
    hidden states of a frozen encoder, padding included, float32 (N, max_length, W)."""
    batch = encoder.tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
    )
    return encoder.model(**batch).last_hidden_state


class Backbone:
    """A pipeline's frozen UNet, autoencoder and text encoders on one device.

    Attributes:
        pipeline: the diffusers pipeline.
        size: side of its images in pixels.
        latent_shape: (C, h, w) of its latents.
        width: of its text states.
    """

    def __init__(
        self,
        pipeline: Any,
        conditioning: dict | None = None,
        attention_slicing: bool = False,
        offload: bool = False,
    ):
        self.pipeline = pipeline
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.dtype = self.unet.dtype
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.xl = type(pipeline).__name__ == "StableDiffusionXLPipeline"
        side = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, *((side, side) if isinstance(side, int) else side))
        self.size = self.latent_shape[1] * pipeline.vae_scale_factor
        self.width = self.unet.config.cross_attention_dim
        self._encoder = text_encoder(conditioning["text_encoder"]) if conditioning else None
        self._max_length = conditioning["max_length"] if conditioning else None
        self._check()
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)
        if self.xl and self.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # SDXL's autoencoder overflows in half precision
        if attention_slicing:
            pipeline.enable_attention_slicing()
            self.vae.enable_slicing()
        self._offloaded = offload and self.device.type == "cuda"
        if self._offloaded:
            pipeline.enable_model_cpu_offload()
        else:
            pipeline.to(self.device)
        pipeline.set_progress_bar_config(disable=True)

    def _check(self) -> None:
        shape, latents = self.latent_shape, self.vae.config.latent_channels
        if shape[0] != latents:
            raise AssetError(f"unet takes {shape[0]} channels, vae has {latents}; take a text-to-image pipeline")
        if shape[1] != shape[2] or self.size > MAX_SIDE:
            raise AssetError(f"unet has sample_size {shape[1:]}; it must be square, at most {MAX_SIDE} pixels")
        if not isinstance(self.width, int):
            raise AssetError(f"unet has cross_attention_dim {self.width}; one width for all blocks is needed")
        if self._encoder is not None and self._encoder.model.config.hidden_size != self.width:
            found = self._encoder.model.config.hidden_size
            raise AssetError(
                f"conditioning.json: encoder '{self._encoder.name}' has width {found}, unet takes {self.width}"
            )
        noise = self.pipeline.scheduler.config
        kind = noise.get("prediction_type", "epsilon")
        if kind not in _PREDICTIONS or "beta_start" not in noise:
            raise AssetError(
                f"scheduler has prediction_type '{kind}' and {'' if 'beta_start' in noise else 'no '}betas; "
                f"it must have betas and one of {', '.join(_PREDICTIONS)}"
            )

    def resident(self) -> None:
        """Keep all modules on the device: gradients cannot cross modules that are offloaded between calls."""
        if self._offloaded:
            self.pipeline.remove_all_hooks()
            self.pipeline.to(self.device)
            self._offloaded = False

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        """Text states of each prompt, each distinct one encoded once; `""` is the unconditional prompt."""
        # apart, because it is the pipeline's own: SDXL takes zeros, others the empty prompt's states
        distinct = sorted(set(prompts))
        texts = [prompt for prompt in distinct if prompt]
        parts = [self._encode(group) for group in ([""] if "" in distinct else [], texts) if group]
        return Prompts.cat(parts).take(torch.tensor([distinct.index(prompt) for prompt in prompts]))

    def _encode(self, texts: list[str]) -> Prompts:
        if self._encoder is not None:
            states = token_states(self._encoder, texts, self._max_length)
            return Prompts(states.to(self.device, self.dtype), {})
        empty = texts == [""]
        encoded = self.pipeline.encode_prompt(
            texts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=empty
        )
        states = encoded[1 if empty else 0].to(self.device, self.dtype)
        if not self.xl:
            return Prompts(states, {})
        pooled = encoded[3 if empty else 2].to(self.device, self.dtype)
        # original size, crop's corner, target size (arXiv 2307.01952)
        ids = torch.tensor([self.size, self.size, 0, 0, self.size, self.size]).to(pooled)
        return Prompts(states, {"text_embeds": pooled, "time_ids": ids.expand(len(texts), -1)})

    def predict(self, latents: Tensor, t: Tensor, states: Any, added: dict[str, Tensor]) -> Tensor:
        """The UNet's prediction, float32 (B, C, h, w), at times `t`, () or (B,)."""
        out = self.unet(
            latents.to(self.dtype),
            t,
            encoder_hidden_states=states,
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return out.float()

    @torch.no_grad()
    def encode_images(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images float32 (B, 3, size, size) in [0, 1] to latents float32 (B, C, h, w)."""
        out = self.vae.encode((images * 2 - 1).to(self.device, self.vae.dtype))
        if hasattr(out, "latent_dist"):
            noise = torch.randn(out.latent_dist.mean.shape, generator=generator).to(self.device)
            latents = out.latent_dist.mean + out.latent_dist.std * noise
        else:
            latents = out.latents
        return latents.float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images float32 (B, 3, size, size) in [0, 1]; gradient flows."""
        out = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)[0]
        return (out.float() / 2 + 0.5).clamp(0, 1)
