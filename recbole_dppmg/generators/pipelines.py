"""Diffusion pipelines as frozen parts: text states, noise prediction, latents, pixels.

A pipeline is a folder of diffusers' layout whose `model_index.json` names a Stable Diffusion 1.x / 2.x or SDXL
pipeline. Where it has no text encoder, `conditioning.json` beside it names the frozen encoder whose last hidden
states it was trained on. Nothing in the folder is unpickled or imported.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_dppmg.assets import ASSETS, resolve
from recbole_dppmg.data.encoders import text_encoder
from recbole_dppmg.errors import AssetError, DPPMGError

logger = logging.getLogger(__name__)

MAX_SIDE = 2048
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
}
_PIPELINES = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder", "tokenizer"),
    "StableDiffusionXLPipeline": (
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
    ),
}
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts: `states` (B, S, W), and for SDXL `added` with `text_embeds` (B, P), `time_ids` (B, 6)."""

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
        self._offloaded = offload and self.device.type == "cuda"
        if self._offloaded:
            pipeline.enable_model_cpu_offload()
        else:
            pipeline.to(self.device)
        pipeline.set_progress_bar_config(disable=True)

    def _check(self) -> None:
        shape, latents = self.latent_shape, self.vae.config.latent_channels
        if shape[0] != latents:
            raise AssetError(
                f"unet takes {shape[0]} channels, vae has {latents}; take a text-to-image pipeline"
            )
        if shape[1] != shape[2] or self.size > MAX_SIDE:
            raise AssetError(
                f"unet has sample_size {shape[1:]}; it must be square, at most {MAX_SIDE} pixels"
            )
        if not isinstance(self.width, int):
            raise AssetError(f"unet has cross_attention_dim {self.width}; one width for all blocks is needed")
        if self._encoder is not None and self._encoder.model.config.hidden_size != self.width:
            found = self._encoder.model.config.hidden_size
            raise AssetError(
                f"conditioning.json: encoder '{self._encoder.name}' has width {found}, unet takes {self.width}"
            )
        kind = self.pipeline.scheduler.config.get("prediction_type", "epsilon")
        if kind not in _PREDICTIONS:
            raise AssetError(
                f"scheduler has prediction_type '{kind}'; it must be one of {', '.join(_PREDICTIONS)}"
            )

    def resident(self) -> None:
        """Keep all modules on the device: gradients cannot cross modules that are offloaded between calls."""
        if self._offloaded:
            self.pipeline.remove_all_hooks()
            self.pipeline.to(self.device)
            self._offloaded = False

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        """Text states of each prompt; a prompt that stands there twice is encoded once. `""` is unconditional."""
        distinct = list(dict.fromkeys(prompts))
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts])
        texts = [prompt for prompt in distinct if prompt]
        parts = [self._encode(texts)] if texts else []
        if "" in distinct:
            # the pipeline's own unconditional states: SDXL takes zeros, others the empty prompt
            parts.append(self._encode([""]))
            order = texts + [""]
            rows = torch.tensor([order.index(prompt) for prompt in prompts])
        return Prompts.cat(parts).take(rows)

    def _encode(self, texts: list[str]) -> Prompts:
        if self._encoder is not None:
            batch = self._encoder.tokenizer(
                texts, padding="max_length", truncation=True, max_length=self._max_length, return_tensors="pt"
            )
            states = self._encoder.model(**batch).last_hidden_state
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
        ids = torch.tensor(
            [[self.size, self.size, 0, 0, self.size, self.size]], device=self.device, dtype=self.dtype
        )
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
        out = self.vae.decode(
            (latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False
        )[0]
        return (out.float() / 2 + 0.5).clamp(0, 1)


def load_backbone(
    model: str, dtype: torch.dtype, attention_slicing: bool = False, offload: bool = False
) -> Backbone:
    """The pipeline of an embedded name, a directory or a hub id.

    Raises:
        AssetError: it cannot be found, is of an unknown class, incomplete, damaged, or has pickled weights.
    """
    folder = _locate(model)
    index = _read_json(folder / "model_index.json", "give a diffusers pipeline folder or hub id")
    name = _checked_class(folder, index)
    conditioning = None
    if index.get("text_encoder", [None])[0] is None:
        conditioning = _conditioning(folder)
    variant = _checked_weights(folder, index, _PIPELINES[name])
    try:
        pipeline = _load(folder, name, index, dtype, variant)
        return Backbone(pipeline, conditioning, attention_slicing, offload)
    except DPPMGError as error:
        raise AssetError(f"image_generator: {folder}: {error}") from error
    except Exception as error:  # whatever a damaged folder makes the libraries raise
        reason = " ".join(str(error).split())[:300]
        raise AssetError(
            f"image_generator: {folder} cannot be loaded ({type(error).__name__}: {reason}); download it again"
        ) from error


def _locate(model: str) -> Path:
    path = Path(model).expanduser()
    if path.is_file():
        raise AssetError(
            f"image_generator: '{model}' is a single file; convert it once, where you trust it, with: python -c "
            f"\"from diffusers import DiffusionPipeline as P; P.from_single_file('{model}')"
            f".save_pretrained('{path.with_suffix('')}')\" and give that folder"
        )
    if path.is_dir() or model in ASSETS or model.count("/") != 1:
        return resolve(model)
    from diffusers import DiffusionPipeline

    try:  # only the pipeline's own files; repositories often hold several copies of the weights
        return Path(DiffusionPipeline.download(model, use_safetensors=True))
    except Exception as error:
        raise AssetError(
            f"image_generator: '{model}' is no directory, and the hub cannot be reached or has no safetensors "
            f"pipeline of that name; give a directory, a reachable hub id, or one of: {', '.join(ASSETS)}"
        ) from error


def _read_json(path: Path, hint: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AssetError(f"image_generator: {path} is missing; {hint}") from error
    except (OSError, ValueError) as error:
        raise AssetError(f"image_generator: {path} is not readable JSON ({error}); {hint}") from error
    if not isinstance(value, dict):
        raise AssetError(f"image_generator: {path} holds no JSON object; {hint}")
    return value


def _checked_class(folder: Path, index: dict) -> str:
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in _PIPELINES:
        raise AssetError(
            f"image_generator: {folder} is a pipeline of class {name}; supported: {', '.join(_PIPELINES)}"
        )
    for part in _PIPELINES[name]:
        found = index.get(part)
        if part.startswith(("text_encoder", "tokenizer")) and found == [None, None]:
            continue
        pair = isinstance(found, list) and len(found) == 2 and found[0] in ("diffusers", "transformers")
        if not pair or found[1] not in _CLASSES[part]:
            raise AssetError(
                f"image_generator: {folder / 'model_index.json'} names {found} as {part}; "
                f"supported: {', '.join(_CLASSES[part])}"
            )
    scheduler = index.get("scheduler")
    if not isinstance(scheduler, list) or len(scheduler) != 2 or not str(scheduler[1]).endswith("Scheduler"):
        raise AssetError(f"image_generator: {folder / 'model_index.json'} names {scheduler} as scheduler")
    return name


def _conditioning(folder: Path) -> dict:
    path = folder / "conditioning.json"
    value = _read_json(path, "a pipeline without a text encoder needs it, with text_encoder and max_length")
    encoder, length = value.get("text_encoder"), value.get("max_length")
    if not isinstance(encoder, str) or not isinstance(length, int) or not 1 < length <= 512:
        raise AssetError(f"image_generator: {path} must name a text_encoder and a max_length from 2 to 512")
    return value


def _checked_weights(folder: Path, index: dict, parts: Sequence[str]) -> str | None:
    """The weights' variant, `fp16` or None; every model must have safetensors."""
    variants = set()
    for part in parts:
        if part.startswith("tokenizer") or index[part][0] is None:
            continue
        if not (folder / part / "config.json").is_file():
            raise AssetError(
                f"image_generator: {folder / part / 'config.json'} is missing; download the folder again"
            )
        found = [path.name for path in sorted((folder / part).iterdir())]
        weights = [name for name in found if name.endswith(".safetensors")]
        pickled = [name for name in found if name.endswith(_PICKLED)]
        if not weights and pickled:
            raise AssetError(
                f"image_generator: {folder / part / pickled[0]} is pickled and is not opened, since a pickle can run "
                f"code; convert the folder once, where you trust it, with: {convert_command(folder)} "
                f"and give the new folder"
            )
        if not weights:
            raise AssetError(
                f"image_generator: {folder / part} has no .safetensors weights; download it again"
            )
        variants.add("fp16" if all(".fp16." in name for name in weights) else None)
    if len(variants) > 1:
        raise AssetError(f"image_generator: {folder} mixes fp16 and full weights; download it again")
    return variants.pop()


def convert_command(folder: Path) -> str:
    """The shell command that turns a pipeline folder's pickled weights into safetensors."""
    return (
        'python -c "from diffusers import DiffusionPipeline as P; '
        f"P.from_pretrained('{folder}', use_safetensors=False, safety_checker=None)"
        f".save_pretrained('{folder}-safetensors')\""
    )


def _load(folder: Path, name: str, index: dict, dtype: torch.dtype, variant: str | None) -> Any:
    """The pipeline from its parts, each loaded apart: a pipeline would fill weights that a file lacks at random."""
    import diffusers
    import transformers

    options = {"local_files_only": True, "use_safetensors": True, "dtype": dtype, "variant": variant}
    parts = dict.fromkeys(_UNUSED)
    for part in _PIPELINES[name]:
        library, kind = index[part]
        if library is None:
            parts[part] = None
            continue
        loader = getattr(diffusers if part in ("unet", "vae") else transformers, kind)
        if part.startswith("tokenizer"):
            parts[part] = loader.from_pretrained(folder, subfolder=part, local_files_only=True)
            continue
        parts[part], info = loader.from_pretrained(
            folder, subfolder=part, output_loading_info=True, **options
        )
        if info["missing_keys"]:
            raise AssetError(
                f"{part} lacks weights, e.g. {sorted(info['missing_keys'])[0]}; download it again"
            )
    parts["scheduler"] = getattr(diffusers, index["scheduler"][1]).from_pretrained(
        folder, subfolder="scheduler"
    )
    if name == "StableDiffusionPipeline":
        return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    del parts["safety_checker"]
    zeros = index.get("force_zeros_for_empty_prompt", True)
    return diffusers.StableDiffusionXLPipeline(
        **parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False
    )
