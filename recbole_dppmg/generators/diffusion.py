"""The diffusion head: a frozen text-to-image pipeline that also reads preference tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_dppmg.artifacts import load_tensors, save_tensors, write_json
from recbole_dppmg.errors import BundleError
from recbole_dppmg.generators.attention import decouple
from recbole_dppmg.generators.pipelines import Backbone, Prompts, load_backbone
from recbole_dppmg.generators.projector import TokenProjector
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import ImageRequest, ImageResult, Item, PreferenceTokens

_PROMPT_CHARACTERS = 300
_REWARD_STEPS = 10
_REWARD_WINDOW = (0.2, 0.6)  # of the noise schedule
_CAPTIONS = (
    "a portrait of a woman",
    "The night train. Crime, Thriller.",
    "a red house by the sea",
    "Love. Comedy.",
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+|<[^<>\s]{1,40}>")


def image_prompt(item: Item) -> str:
    """What the pipeline is asked to draw: the item's text, of one line, without anything like a special token."""
    return " ".join(_UNPRINTABLE.sub(" ", item.text or item.title).split())[:_PROMPT_CHARACTERS]


class DiffusionHead:
    """Draws items for users; trains nothing but what maps preference tokens into the pipeline.

    A user's image tokens enter cross-attention beside the prompt's states (`concat`) or with keys and values of
    their own (`decoupled`). Guidance has a scale of its own for the preference:
    `eps(0,0) + g_text [eps(c,0) - eps(0,0)] + g_pref [eps(c,p) - eps(c,0)]`, after arXiv 2211.09800.

    Args:
        model: embedded name, directory or hub id of a pipeline, or a loaded `Backbone`.
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
        self.backbone, self.settings = model, settings
        self.size = model.size
        self._noising = DDPMScheduler.from_config(model.pipeline.scheduler.config)
        self._levels, self._codes = codebooks["image"].shape[:2]
        states = model.encode_prompts(_CAPTIONS).states[:, 1:].flatten(0, 1)  # the first is CLIP's outlier
        padding = model.encode_prompts([""]).states[0]
        rows = torch.arange(self._levels).add(1).neg().clamp_min(-len(padding)).flip(0)
        self.projector = TokenProjector(codebooks["image"], states, padding[rows], seed).to(model.device)
        parts = {"projector": self.projector}
        if settings.image_injection == "decoupled":
            parts["attention"] = decouple(model.unet, settings.preference_scale)
        self._trained = nn.ModuleDict(parts)

    def parameters(self) -> list[nn.Parameter]:
        """The token-associated parameters: projector, level and null embeddings, keys and values of the tokens."""
        return [p for p in self._trained.parameters() if p.requires_grad]

    def teaching_loss(
        self, requests: Sequence[ImageRequest], images: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Mean squared error of the predicted noise (or velocity), on images of liked items.

        Args:
            requests: B items with the tokens of who liked them; a share of both is dropped.
            images: float32 (B, 3, size, size) in [0, 1].
            generator: on the CPU; of times, noise and what is dropped.

        Returns:
            float32 (), on the CPU, with gradient.
        """
        self.backbone.resident()
        device, size = self.backbone.device, len(requests)
        latents = self.backbone.encode_images(images, generator)
        # one time in each of B equal parts of the schedule: the loss varies far less from step to step
        places = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
        times = (places * self._noising.config.num_train_timesteps).long().to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        lot = torch.rand(size, generator=generator)
        both = lot < self.settings.both_dropout
        without = lot < self.settings.both_dropout + self.settings.preference_dropout
        prompts = self.backbone.encode_prompts(
            ["" if drop else image_prompt(r.item) for r, drop in zip(requests, both.tolist(), strict=True)]
        )
        codes, present = self._encode_tokens([r.tokens for r in requests])
        noisy = self._noising.add_noise(latents, noise, times)
        predicted = self._predict(noisy, times, prompts, self.projector(codes, present & ~without.to(device)))
        kind = self._noising.config.prediction_type
        if kind == "epsilon":
            target = noise
        else:
            target = latents if kind == "sample" else self._noising.get_velocity(latents, noise, times)
        return F.mse_loss(predicted, target).cpu()

    @torch.no_grad()
    def generate(self, batch: Sequence[ImageRequest]) -> list[ImageResult]:
        """One image per request, in order. A request's noise follows from its seed and item alone.

        A request that cannot be drawn gets a result with `error`; an image with NaN is tried once more with
        other noise.
        """
        faults = [self._fault(request.tokens) for request in batch]
        good = [n for n, fault in enumerate(faults) if fault is None]
        drawn = dict(zip(good, self._sample([batch[n] for n in good], 0), strict=True)) if good else {}
        broken = [n for n, image in drawn.items() if not image.isfinite().all()]
        if broken:
            drawn |= zip(broken, self._sample([batch[n] for n in broken], 1), strict=True)
        return [ImageResult(None, faults[n]) if faults[n] else _result(drawn[n]) for n in range(len(batch))]

    def differentiable_images(self, requests: Sequence[ImageRequest], seed: int) -> tuple[Tensor, Tensor]:
        """Images that a reward can be followed back from: denoised without gradient to a random middle time,
        then predicted in one step with gradient (ReFL, arXiv 2304.05977).

        Args:
            requests: B requests; equal ones get different noise.
            seed: of the noise and the time.

        Returns:
            images float32 (B, 3, size, size) in [0, 1], and the drift `mean (eps(c,p) - eps(c,0))^2`, (); both
            on the CPU, with gradient to what preference tokens go through, but not to the null tokens.
        """
        self.backbone.resident()
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn((len(requests), *self.backbone.latent_shape), generator=generator)
        latents = latents.to(self.backbone.device)
        scheduler = self._scheduler(_REWARD_STEPS)
        low, high = (share * scheduler.config.num_train_timesteps for share in _REWARD_WINDOW)
        stops = [n for n, t in enumerate(scheduler.timesteps.tolist()) if n and low <= t <= high]
        stop = stops[int(torch.randint(len(stops), (), generator=generator))]
        with torch.no_grad():
            prompts, tokens = self._branches(requests)
            for t in scheduler.timesteps[:stop]:
                latents = scheduler.step(self._guided(latents, t, prompts, tokens), t, latents).prev_sample
            n, t = len(requests), scheduler.timesteps[stop]
            rows = torch.arange(2 * n)
            plain = self._predict(latents.repeat(2, 1, 1, 1), t, prompts.take(rows), tokens[: 2 * n])
        nothing, text = plain.chunk(2)
        personal = self._predict(
            latents,
            t,
            prompts.take(rows[n:]),
            self.projector(*self._encode_tokens([r.tokens for r in requests])),
        )
        predicted = scheduler.convert_model_output(self._combined(nothing, text, personal), sample=latents)
        return self.backbone.decode(predicted).cpu(), (personal - text).square().mean().cpu()

    def save(self, directory: str | Path) -> None:
        """Write `tokens.safetensors` and `head.json`."""
        save_tensors(Path(directory) / "tokens.safetensors", self._trained.state_dict())
        write_json(Path(directory) / "head.json", self._identity())

    def load(self, directory: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            BundleError: a file is missing or damaged, or was written with another pipeline or other codebooks.
        """
        path = Path(directory) / "head.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key, value in self._identity().items() if found.get(key) != value]
        except (OSError, ValueError, AttributeError) as error:
            raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again") from error
        if differing:
            key = differing[0]
            raise BundleError(
                f"{path}: was written with {key} {found.get(key)}, the pipeline at hand has {self._identity()[key]}"
            )
        tensors = load_tensors(Path(directory) / "tokens.safetensors")
        own = self._trained.state_dict()
        for name in sorted(tensors.keys() | own.keys()):
            if name not in tensors or name not in own or tensors[name].shape != own[name].shape:
                raise BundleError(
                    f"{directory}/tokens.safetensors: '{name}' does not fit; copy the bundle again"
                )
            if not tensors[name].isfinite().all():
                raise BundleError(f"{directory}/tokens.safetensors: '{name}' is not finite; train it again")
        self._trained.load_state_dict(tensors)

    def _identity(self) -> dict:
        unet = {k: v for k, v in dict(self.backbone.unet.config).items() if not k.startswith("_")}
        return {
            "format": 1,
            "injection": self.settings.image_injection,
            "levels": self._levels,
            "codes": self._codes,
            "width": self.backbone.width,
            "unet": hashlib.sha256(json.dumps(unet, sort_keys=True, default=str).encode()).hexdigest()[:16],
        }

    def _fault(self, tokens: PreferenceTokens | None) -> str | None:
        codes = () if tokens is None else tokens.get("image", ())
        if tokens is None or (len(codes) == self._levels and all(0 <= code < self._codes for code in codes)):
            return None
        return f"image tokens {codes} are not {self._levels} codes below {self._codes}"

    def _encode_tokens(self, tokens: Sequence[PreferenceTokens | None]) -> tuple[Tensor, Tensor]:
        """Codes int64 (B, L), zeros where there are no tokens, and whether there are, bool (B,)."""
        nothing = (0,) * self._levels
        codes = torch.tensor([nothing if t is None else t["image"] for t in tokens])
        present = torch.tensor([t is not None for t in tokens])
        return codes.to(self.backbone.device), present.to(self.backbone.device)

    def _branches(self, requests: Sequence[ImageRequest]) -> tuple[Prompts, Tensor]:
        """Prompts and tokens (3B, L, W) of `eps(0,0)`, `eps(c,0)`, `eps(c,p)`, one after another."""
        size = len(requests)
        prompts = self.backbone.encode_prompts([""] * size + [image_prompt(r.item) for r in requests])
        rows = torch.arange(2 * size)
        codes, present = self._encode_tokens([None] * (2 * size) + [r.tokens for r in requests])
        return prompts.take(torch.cat([rows, rows[size:]])), self.projector(codes, present)

    def _predict(self, latents: Tensor, t: Tensor, prompts: Prompts, tokens: Tensor) -> Tensor:
        if self.settings.image_injection == "decoupled":
            states = (prompts.states, tokens)
        else:
            states = torch.cat([prompts.states, tokens.to(prompts.states.dtype)], dim=1)
        return self.backbone.predict(latents, t, states, prompts.added)

    def _guided(self, latents: Tensor, t: Tensor, prompts: Prompts, tokens: Tensor) -> Tensor:
        return self._combined(*self._predict(latents.repeat(3, 1, 1, 1), t, prompts, tokens).chunk(3))

    def _combined(self, nothing: Tensor, text: Tensor, personal: Tensor) -> Tensor:
        settings = self.settings
        return (
            nothing
            + settings.guidance_text * (text - nothing)
            + settings.guidance_preference * (personal - text)
        )

    def _scheduler(self, steps: int):
        """DPM-Solver++ (arXiv 2211.01095) on the pipeline's own noise schedule, without noise of its own."""
        from diffusers import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler.from_config(
            self.backbone.pipeline.scheduler.config, algorithm_type="dpmsolver++"
        )
        scheduler.set_timesteps(steps, device=self.backbone.device)
        return scheduler

    def _sample(self, requests: Sequence[ImageRequest], attempt: int) -> Tensor:
        """Images float32 (B, 3, size, size) in [0, 1], on the CPU."""
        shape = self.backbone.latent_shape
        noise = [torch.randn(shape, generator=_generator(request, attempt)) for request in requests]
        latents = torch.stack(noise).to(self.backbone.device)
        prompts, tokens = self._branches(requests)
        scheduler = self._scheduler(self.settings.sampling_steps)
        for t in scheduler.timesteps:
            latents = scheduler.step(self._guided(latents, t, prompts, tokens), t, latents).prev_sample
        return self.backbone.decode(latents).cpu()


def _generator(request: ImageRequest, attempt: int) -> torch.Generator:
    """Noise by seed and item: users share it, so that what differs between them is what the tokens do."""
    digest = hashlib.sha256(f"{request.seed}/{request.item.id}/{attempt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _result(image: Tensor) -> ImageResult:
    from PIL import Image

    if not image.isfinite().all():
        return ImageResult(
            None, "the pipeline gave values that are not finite, twice; try image_dtype: float32"
        )
    return ImageResult(Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()))
