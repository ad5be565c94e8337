"""Loading a diffusion pipeline from a folder that is not trusted.

A pipeline is a folder of diffusers' layout whose `model_index.json` names a Stable Diffusion 1.x / 2.x or SDXL
pipeline. Where it has no text encoder, `conditioning.json` beside it names the frozen encoder whose last hidden
states it was trained on. Nothing in the folder is unpickled or imported.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch

from recbole_dppmg.assets import resolve
from recbole_dppmg.errors import AssetError, DPPMGError
from recbole_dppmg.generators.pipelines import Backbone

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


def load_backbone(model: str, dtype: torch.dtype, attention_slicing: bool = False, offload: bool = False) -> Backbone:
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
    for part in _PIPELINES[name]:
        if index[part][0] is not None:
            (_check_tokenizer if part.startswith("tokenizer") else _check_weights)(folder, part)
    try:
        pipeline = _load(folder, name, index, dtype)
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
        program = (
            f"from diffusers import StableDiffusionPipeline as P; "
            f"P.from_single_file({str(path)!r}).save_pretrained({str(path.with_suffix(''))!r})"
        )
        raise AssetError(
            f"image_generator: '{model}' is a single file; convert it once, where you trust it, with: "
            f"python -c {shlex.quote(program)} and give the new folder"
        )
    if path.is_dir() or model.count("/") != 1:
        return resolve(model)
    from diffusers import DiffusionPipeline

    try:  # only the pipeline's own files; repositories often hold several copies of the weights
        return Path(DiffusionPipeline.download(model, use_safetensors=True))
    except Exception as error:
        raise AssetError(
            f"image_generator: '{model}' is no directory, and the hub cannot be reached or has no safetensors "
            f"pipeline of that name; give a directory, a reachable hub id, or compact-diffusion"
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
        raise AssetError(f"image_generator: {folder} is a pipeline of class {name}; supported: {', '.join(_PIPELINES)}")
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


def _check_weights(folder: Path, part: str) -> None:
    if not (folder / part / "config.json").is_file():
        raise AssetError(f"image_generator: {folder / part / 'config.json'} is missing; download the folder again")
    found = sorted(path.name for path in (folder / part).iterdir())
    if any(name.endswith(".safetensors") for name in found):
        return
    if pickled := [name for name in found if name.endswith(_PICKLED)]:
        raise AssetError(
            f"image_generator: {folder / part / pickled[0]} is pickled and is not opened, since a pickle can run code; "
            f"convert the folder once, where you trust it, with: {convert_command(folder)} and give the new folder"
        )
    raise AssetError(f"image_generator: {folder / part} has no .safetensors weights; download it again")


def _check_tokenizer(folder: Path, part: str) -> None:
    # without these files transformers makes an empty vocabulary and says nothing
    files = {path.name for path in (folder / part).glob("*")}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise AssetError(
            f"image_generator: {folder / part} lacks tokenizer.json, or vocab.json and merges.txt; download it again"
        )


def convert_command(folder: Path) -> str:
    """The shell command that turns a pipeline folder's pickled weights into safetensors beside it."""
    program = (
        f"from diffusers import DiffusionPipeline as P; "
        f"P.from_pretrained({str(folder)!r}, safety_checker=None)"
        f".save_pretrained({str(folder) + '-safetensors'!r})"
    )
    return f"python -c {shlex.quote(program)}"


def _load(folder: Path, name: str, index: dict, dtype: torch.dtype) -> Any:
    """The pipeline from its parts, each loaded apart: a pipeline would fill weights that a file lacks at random."""
    import diffusers
    import transformers

    parts = dict.fromkeys(_UNUSED)
    for part in _PIPELINES[name]:
        library, kind = index[part]
        if library is None:
            parts[part] = None
            continue
        loader = getattr(diffusers if part in ("unet", "vae") else transformers, kind)
        options: dict[str, Any] = {"subfolder": part, "local_files_only": True}
        if not part.startswith("tokenizer"):
            half_only = all(".fp16." in path.name for path in (folder / part).glob("*.safetensors"))
            options |= {"use_safetensors": True, "dtype": dtype, "variant": "fp16" if half_only else None}
            parts[part], info = loader.from_pretrained(folder, output_loading_info=True, **options)
            if info["missing_keys"]:
                raise AssetError(f"{part} lacks weights, e.g. {sorted(info['missing_keys'])[0]}; download it again")
        else:
            parts[part] = loader.from_pretrained(folder, **options)
    parts["scheduler"] = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    if name == "StableDiffusionPipeline":
        return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    del parts["safety_checker"]
    zeros = index.get("force_zeros_for_empty_prompt", True)
    return diffusers.StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
