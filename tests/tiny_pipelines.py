"""Tiny real pipelines, built from configs and saved to disk as their makers would."""

import json
from pathlib import Path

import torch

BLOCKS = {
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}


def _tokenizer():
    from transformers import CLIPTokenizer

    letters = [chr(n) for n in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)


def _clip(width: int, projection: int | None = None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_attention_heads=4,
        num_hidden_layers=2, projection_dim=projection or width, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _unet(channels: int, width: int, **more):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, cross_attention_dim=width,
        attention_head_dim=8, **BLOCKS | more,
    )  # fmt: skip
    for name, parameter in unet.named_parameters():
        if "attn2.to_" in name:  # drawn at random, it would hardly hear what it is told
            parameter.data *= 4
    return unet


def _kl():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, sample_size=16,
    )  # fmt: skip


def save_sd(folder: Path, prediction_type: str = "epsilon", **options) -> Path:
    """Stable Diffusion 1.5's layout; with `v_prediction` and a wider text state, 2.1's."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    width = 32 if prediction_type == "epsilon" else 64
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        prediction_type=prediction_type,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=_kl(), text_encoder=_clip(width), tokenizer=_tokenizer(), unet=_unet(4, width), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder, **options)  # fmt: skip
    return folder


def save_sdxl(folder: Path) -> Path:
    """SDXL's layout: two text encoders side by side, pooled embeddings, time ids."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    unet = _unet(
        4, 32 + 48, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 40, use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=_kl(), text_encoder=_clip(32), text_encoder_2=_clip(48, 40), tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(), unet=unet, add_watermarker=False,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_compact(folder: Path) -> Path:
    """The embedded pipeline's layout: no text encoder of its own, tiny autoencoder, velocity prediction."""
    from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=8,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=_unet(8, 384), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    conditioning = {"text_encoder": "all-MiniLM-L6-v2", "max_length": 32}
    (folder / "conditioning.json").write_text(json.dumps(conditioning))
    return folder
