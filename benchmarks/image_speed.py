"""Speed and memory of the image generator, with and without preference tokens.

    python -m benchmarks.image_speed --pipeline=DIR_OR_ID
    python -m benchmarks.image_speed --size=sd15 --dtype=float16 --batches 1 8 32

`--size=sd15` builds Stable Diffusion 1.5's parts with random weights: what is drawn is noise, the time is the same.
Three ways of drawing the same batch are timed in turn: `base` is the pipeline's own guidance (two predictions a step,
no tokens), `tokens` the same with preference tokens in cross-attention, `dual` has a guidance scale for the text and
one for the preference (three predictions). `teach` is one step of teaching. Peak memory is the GPU's, on a CPU the
process's, weights included.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from recbole_dppmg.generators.denoising import Denoiser
from recbole_dppmg.generators.diffusion import DiffusionHead
from recbole_dppmg.generators.pipelines import Backbone
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import ImageRequest, Item

LEVELS, CODES, WIDTH = 4, 32, 64
SCALE = 5.0
GPU = torch.cuda.is_available()


def random_sd15(dtype: torch.dtype) -> Backbone:
    """Stable Diffusion 1.5's UNet, autoencoder and CLIP with random weights."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=512,
    )  # fmt: skip
    encoder = CLIPTextModel(text)
    torch.set_default_dtype(torch.float32)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.to(dtype), text_encoder=encoder.to(dtype), tokenizer=tokenizer, unet=unet.to(dtype),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return Backbone(pipeline)


def measured(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of the fastest call after one to warm up, and the peak of memory in GiB."""
    run()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        _wait()
        began = time.perf_counter()
        run()
        _wait()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if GPU else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return min(seconds), peak / 2**30


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def ways_of(head: DiffusionHead, batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    requests = [
        ImageRequest(Item(str(n), "", f"Film {n} (1995). Crime, Thriller."), {"image": (n % CODES,) * LEVELS}, n)
        for n in range(batch)
    ]
    noise = torch.randn(batch, *head.backbone.latent_shape)
    images = torch.rand(batch, 3, head.size, head.size)
    # with equal scales the prediction with text alone has no weight and is not made
    equal = Denoiser(head.backbone, head.settings.model_copy(update={"guidance_preference": SCALE}))
    attention = head._trained["attention"].values() if head.denoiser.decoupled else ()

    def draw(denoiser: Denoiser) -> None:
        with torch.no_grad():
            tokens = head.projector(*head._encode_tokens(requests))
        denoiser.sample(noise, head._prompts(requests), head.projector.null, tokens)

    def base() -> None:
        for module in attention:
            module.scale = 0.0
        nothing = head.projector.null[:0] if not attention else head.projector.null
        equal.sample(noise, head._prompts(requests), nothing, None)
        for module in attention:
            module.scale = 1.0

    def teach() -> None:
        head.teaching_loss(requests, images, torch.Generator().manual_seed(0)).backward()

    return {"base": base, "tokens": lambda: draw(equal), "dual": lambda: draw(head.denoiser), "teach": teach}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pipeline", help="embedded name, directory or hub id")
    source.add_argument("--size", choices=["sd15"], help="random weights of this size")
    parser.add_argument("--dtype", default="float16" if GPU else "float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--injection", default="concat", choices=["concat", "decoupled"])
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["base", "tokens", "dual", "teach"])
    arguments = parser.parse_args()

    keys = {"image_dtype": arguments.dtype, "sampling_steps": arguments.steps, "image_injection": arguments.injection}
    settings = Settings(**keys, guidance_text=SCALE, guidance_preference=2.0)
    codebooks = {"image": torch.randn(LEVELS, CODES, WIDTH)}
    model = random_sd15(getattr(torch, arguments.dtype)) if arguments.size else arguments.pipeline
    head = DiffusionHead(model, codebooks, settings, 0)
    device = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"
    print(f"# {arguments.size or arguments.pipeline}, {head.size} px, {arguments.dtype}, {device}")
    print("| batch | way | images/s | over base | peak GiB |\n|---|---|---|---|---|")
    for batch in arguments.batches:
        base = None
        for name, run in ways_of(head, batch).items():
            if name not in arguments.only:
                continue
            seconds, peak = measured(run, arguments.repeats)
            base = seconds if name == "base" else base
            over = f"{seconds / base - 1:+.1%}" if base and name in ("tokens", "dual") else ""
            print(f"| {batch} | {name} | {batch / seconds:.3f} | {over} | {peak:.2f} |", flush=True)
    print(json.dumps(vars(arguments)))


if __name__ == "__main__":
    main()
