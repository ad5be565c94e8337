"""The diffusion head: a frozen text-to-image pipeline that also reads preference tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_dppmg.artifacts import load_tensors, save_tensors, write_json
from recbole_dppmg.errors import BundleError
from recbole_dppmg.generators.attention import decouple
from recbole_dppmg.generators.denoising import Denoiser
from recbole_dppmg.generators.loading import load_backbone
from recbole_dppmg.generators.pipelines import Backbone, Prompts
from recbole_dppmg.generators.projector import TokenProjector
from recbole_dppmg.generators.prompts import about, clean
from recbole_dppmg.generators.unet_lora import add_lora, load_lora, save_lora
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import ImageRequest, ImageResult, Item, PreferenceTokens

_PROMPT_CHARACTERS = 300
_CAPTIONS = ("a portrait of a woman", "The night train. Crime, Thriller.", "a red house by the sea", "Love.")


def image_prompt(item: Item) -> str:
    """What the pipeline is asked to draw, as one line of plain words: the item's name and what its text says beyond
    year and attributes. How it is drawn is left to the tokens; a prompt that names a genre settles that for all users.

    >>> image_prompt(Item("7", "Heat", "Heat (1995). Action, Crime. Two men.", ("Action", "Crime"), 1995))
    'Heat. Two men.'
    """
    told = [text for text in (clean(item.title, _PROMPT_CHARACTERS), about(item)) if text]
    return clean(". ".join(told), _PROMPT_CHARACTERS)


class DiffusionHead:
    """Draws items for users; trains nothing but what maps preference tokens into the pipeline.

    A user's image tokens enter cross-attention beside the prompt's states (`concat`) or with keys and values
    of their own (`decoupled`). A LoRA is trained too only where `image_lora_rank` asks for it.

    Args:
        model: embedded name, directory or hub id of a pipeline, or a loaded one.
        codebooks: float (L, K, d) per modality; those of `image` are used.
        settings: the keys of the run.
        seed: of the new weights.

    Raises:
        AssetError: the pipeline cannot be used.
    """

    name = "diffusion"

    def __init__(self, model: str | Backbone, codebooks: Mapping[str, Tensor], settings: Settings, seed: int):
        from diffusers import DDPMScheduler

        if not isinstance(model, Backbone):
            dtype = getattr(torch, settings.image_dtype)
            model = load_backbone(model, dtype, settings.attention_slicing, settings.cpu_offload)
        self.backbone, self.settings, self.size = model, settings, model.size
        self.denoiser = Denoiser(model, settings)
        self._noising = DDPMScheduler.from_config(model.pipeline.scheduler.config)
        self._levels, self._codes = codebooks["image"].shape[:2]
        # a LoRA first: adding one freezes all that is there
        rank = settings.image_lora_rank
        self._lora = add_lora(model.unet, rank, seed) if rank else []
        parts = {"projector": self._projector(codebooks["image"], seed)}
        if settings.image_injection == "decoupled":
            parts["attention"] = decouple(model.unet, settings.preference_scale)
        self._trained = nn.ModuleDict(parts)
        for inner in (*self._lora, *(parts["attention"].parameters() if "attention" in parts else ())):
            inner.register_hook(lambda gradient: gradient / self.denoiser.amplification)

    def _projector(self, codebook: Tensor, seed: int) -> TokenProjector:
        # position 0 is CLIP's start token, whose state is an outlier
        states = self.backbone.encode_prompts(_CAPTIONS).states[:, 1:].flatten(0, 1)
        padding = self.backbone.encode_prompts([""]).states[0]
        last = torch.arange(-self._levels, 0).clamp_min(-len(padding))
        return TokenProjector(codebook, states, padding[last], seed).to(self.backbone.device)

    def parameters(self) -> list[nn.Parameter]:
        """The token-associated parameters: projector, level and null embeddings, the tokens' keys and values,
        and a LoRA's where there is one."""
        return [*self._trained.parameters(), *self._lora]

    def teaching_loss(self, requests: Sequence[ImageRequest], images: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise (or velocity), on images of liked items.

        Args:
            requests: B items with the tokens of who liked them; some lose their tokens, some their text too.
            images: float32 (B, 3, size, size) in [0, 1].
            generator: on the CPU; of times, noise and what is dropped.

        Returns:
            float32 (), on the CPU, with gradient.
        """
        self.backbone.resident()
        device, size, settings = self.backbone.device, len(requests), self.settings
        latents = self.backbone.encode_images(images, generator)
        # one time in each of B equal parts of the schedule: the loss varies far less from step to step
        places = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
        times = (places * self._noising.config.num_train_timesteps).long().to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        lot = torch.rand(size, generator=generator)
        dropped = (lot < settings.both_dropout + settings.preference_dropout).to(device)
        untold = (lot < settings.both_dropout).tolist()
        prompts = self.backbone.encode_prompts(
            ["" if drop else image_prompt(r.item) for r, drop in zip(requests, untold, strict=True)]
        )
        codes, present = self._encode_tokens(requests)
        tokens = self.projector(codes, present & ~dropped)
        predicted = self.denoiser.predict(self._noising.add_noise(latents, noise, times), times, prompts, tokens)
        return F.mse_loss(predicted, self._target(latents, noise, times)).cpu()

    @property
    def projector(self) -> TokenProjector:
        """The map from codes to tokens."""
        return self._trained["projector"]

    def _target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        kind = self._noising.config.prediction_type
        if kind == "epsilon":
            return noise
        return latents if kind == "sample" else self._noising.get_velocity(latents, noise, times)

    @torch.no_grad()
    def generate(self, batch: Sequence[ImageRequest]) -> list[ImageResult]:
        """One image per request, in order. A request's noise follows from its seed and item alone.

        A request that cannot be drawn gets a result with `error`; an image with NaN is tried once more with
        other noise.
        """
        faults = [self._fault(request.tokens) for request in batch]
        drawn = self._sample(batch, [n for n, fault in enumerate(faults) if fault is None], 0)
        broken = [n for n, image in drawn.items() if not image.isfinite().all()]
        drawn |= self._sample(batch, broken, 1)
        return [ImageResult(None, fault) if fault else _result(drawn[n]) for n, fault in enumerate(faults)]

    def _sample(self, batch: Sequence[ImageRequest], chosen: list[int], attempt: int) -> dict[int, Tensor]:
        """Images float32 (3, size, size) in [0, 1], on the CPU, of the requests at `chosen`."""
        if not chosen:
            return {}
        requests = [batch[n] for n in chosen]
        noise = [torch.randn(self.backbone.latent_shape, generator=_noise_of(r, attempt)) for r in requests]
        codes, present = self._encode_tokens(requests)
        tokens = self.projector(codes, present) if any(r.tokens is not None for r in requests) else None
        prompts = self._prompts(requests)
        images = self.denoiser.sample(torch.stack(noise), prompts, self.projector.null, tokens)
        return dict(zip(chosen, images.cpu(), strict=True))

    def differentiable_images(self, requests: Sequence[ImageRequest], seed: int) -> tuple[Tensor, Tensor]:
        """Images that a reward can be followed back from; see `Denoiser.middle_step`.

        Args:
            requests: B requests; equal ones get different noise.
            seed: of the noise and the time.

        Returns:
            images float32 (B, 3, size, size) in [0, 1] and the drift, (), both on the CPU, with gradient to
            what preference tokens go through, but not to the null tokens.
        """
        self.backbone.resident()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(requests), *self.backbone.latent_shape), generator=generator)
        tokens = self.projector(*self._encode_tokens(requests))
        images, drift = self.denoiser.middle_step(
            noise, self._prompts(requests), self.projector.null, tokens, generator
        )
        return images.cpu(), drift.cpu()

    def _prompts(self, requests: Sequence[ImageRequest]) -> Prompts:
        """2B prompts, unconditional ones first."""
        return self.backbone.encode_prompts([""] * len(requests) + [image_prompt(r.item) for r in requests])

    def _fault(self, tokens: PreferenceTokens | None) -> str | None:
        codes = () if tokens is None else tokens.get("image", ())
        if tokens is None or (len(codes) == self._levels and all(0 <= code < self._codes for code in codes)):
            return None
        return f"image tokens {codes} are not {self._levels} codes below {self._codes}"

    def _encode_tokens(self, requests: Sequence[ImageRequest]) -> tuple[Tensor, Tensor]:
        """Codes int64 (B, L), zeros where there are no tokens, and whether there are, bool (B,)."""
        nothing = (0,) * self._levels
        codes = torch.tensor([nothing if r.tokens is None else r.tokens["image"] for r in requests])
        present = torch.tensor([r.tokens is not None for r in requests])
        return codes.to(self.backbone.device), present.to(self.backbone.device)

    def save(self, directory: str | Path) -> None:
        """Write `tokens.safetensors`, `head.json`, and `lora/` where there is one."""
        directory = Path(directory)
        save_tensors(directory / "tokens.safetensors", self._trained.state_dict())
        if self._lora:
            save_lora(self.backbone.unet, directory / "lora")
        write_json(directory / "head.json", self._identity())

    def load(self, directory: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            BundleError: a file is missing or damaged, or is of another pipeline or other codebooks.
        """
        directory = Path(directory)
        path, identity = directory / "head.json", self._identity()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key, value in identity.items() if found.get(key) != value]
        except (OSError, ValueError, AttributeError) as error:
            raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again") from error
        if differing:
            key = differing[0]
            raise BundleError(
                f"{path}: written with {key} {found.get(key)}, but the pipeline at hand has {identity[key]}"
            )
        path = directory / "tokens.safetensors"
        tensors, own = load_tensors(path), self._trained.state_dict()
        for name in sorted(tensors.keys() | own.keys()):
            if name not in tensors or name not in own or tensors[name].shape != own[name].shape:
                raise BundleError(f"{path}: '{name}' does not fit the pipeline; copy the bundle again")
            if not tensors[name].isfinite().all():
                raise BundleError(f"{path}: '{name}' is not finite; train again")
        if self._lora:
            load_lora(self.backbone.unet, directory / "lora")
        self._trained.load_state_dict(tensors)

    def _identity(self) -> dict:
        """What must agree between who writes a head and who reads it."""
        unet = {key: value for key, value in self.backbone.unet.config.items() if not key.startswith("_")}
        return {
            "format": 1,
            "injection": self.settings.image_injection,
            "lora_rank": self.settings.image_lora_rank,
            "levels": self._levels,
            "codes": self._codes,
            "unet": hashlib.sha256(json.dumps(unet, sort_keys=True, default=str).encode()).hexdigest()[:16],
        }


def _noise_of(request: ImageRequest, attempt: int) -> torch.Generator:
    """Noise by seed and item: users share it, so that what differs between them is what the tokens do."""
    digest = hashlib.sha256(f"{request.seed}/{request.item.id}/{attempt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _result(image: Tensor) -> ImageResult:
    from PIL import Image

    if not image.isfinite().all():
        return ImageResult(None, "the pipeline gave NaN twice; try image_dtype: float32")
    return ImageResult(Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()))
