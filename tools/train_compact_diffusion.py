"""Train the embedded image pipeline: an autoencoder, then a denoiser on its latents, both of diffusers' classes.

    python tools/train_compact_diffusion.py autoencoder --folder=build/compact --steps=1500
    python tools/train_compact_diffusion.py denoiser    --folder=build/compact --steps=7000
    python tools/train_compact_diffusion.py export      --folder=build/compact --target=recbole_dppmg/weights/compact-diffusion

Each step of training can be killed and started again: it goes on from its last checkpoint. On a GPU it uses it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from compact_data import film_examples, made_up_examples, pixels
from diffusers import AutoencoderTiny, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from recbole_dppmg.data.encoders import text_encoder

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ENCODER, TOKENS = "all-MiniLM-L6-v2", 32
CHANNELS = 8
MADE_UP = 9000
FILM_SHARE = 0.4  # of the training batches
NO_TEXT = 0.1  # share of captions left out, for guidance
EMA = 0.999


def autoencoder() -> AutoencoderTiny:
    """128 x 128 pixels to 16 x 16 latents of 8 channels; most of its depth where the maps are small."""
    widths, down, up = (48,) * 4, (1, 1, 2, 4), (4, 3, 1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=down, num_decoder_blocks=up, latent_channels=CHANNELS,
    )  # fmt: skip


def denoiser() -> UNet2DConditionModel:
    """Convolutions at 16 x 16, cross-attention on the caption's states at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(64, 128, 256),
        layers_per_block=1, cross_attention_dim=384, norm_num_groups=16,
        attention_head_dim=4,  # diffusers takes it as the number of heads
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def noise_schedule() -> DDPMScheduler:
    """Cosine schedule, velocity prediction (arXiv 2202.00512): stable at all noise levels."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)


def _autocast():
    return torch.autocast(DEVICE.type, torch.bfloat16)


class Checkpoint:
    """Weights as safetensors with the optimizer's state beside them, written whole or not at all."""

    def __init__(self, folder: Path, name: str):
        self.weights, self.rest = folder / f"{name}.safetensors", folder / f"{name}.state"
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, tensors: dict[str, Tensor], **state) -> None:
        for path, write in (
            (self.rest, lambda p: torch.save(state, p)),
            (self.weights, lambda p: save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, p)),
        ):
            temporary = path.with_suffix(".tmp")
            write(temporary)
            temporary.replace(path)

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        if not self.weights.is_file():
            return None
        return load_file(self.weights), torch.load(self.rest, weights_only=True, map_location="cpu")


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a half cosine down to a hundredth."""
    done = min(1.0, step / steps)
    return peak * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train_autoencoder(folder: Path, steps: int, batch: int = 16, peak: float = 2e-3) -> None:
    """L1 in pixels and in their gradients, which keeps outlines sharp; latents are drawn towards unit size."""
    torch.manual_seed(0)
    model = autoencoder().to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=1e-4)
    checkpoint, start = Checkpoint(folder, "autoencoder"), 0
    if found := checkpoint.load():
        model.load_state_dict(found[0])
        optimizer.load_state_dict(found[1]["optimizer"])
        start = found[1]["step"]
    films, _ = film_examples()
    covers = [cover for _, cover in films + made_up_examples(MADE_UP, seed=1)]
    chance = torch.Generator().manual_seed(start)
    began, total = time.time(), 0.0
    for step in range(start, steps):
        chosen = torch.randint(len(covers), (batch,), generator=chance).tolist()
        image = pixels([covers[n] for n in chosen]).to(DEVICE).float() / 127.5 - 1
        image = image.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        with _autocast():
            latents = model.encoder(image)
            output = model.decoder(latents)
        output, latents = output.float(), latents.float()
        error = output - image
        edges = (error.diff(dim=2)).abs().mean() + (error.diff(dim=3)).abs().mean()
        loss = error.abs().mean() + 0.5 * edges + 1e-3 * (latents.pow(2).mean() - 1).clamp_min(0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 50 == 0:
            each = (time.time() - began) / (step + 1 - start)
            print(f"autoencoder {step + 1}/{steps} loss {total / 50:.4f} {each:.2f} s/step", flush=True)
            total = 0.0
        if (step + 1) % 200 == 0 or step + 1 == steps:
            checkpoint.save(model.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)


@torch.no_grad()
def encode_all(folder: Path) -> dict[str, Tensor]:
    """Latents of every training cover, scaled to unit variance, and states of every caption; kept on disk."""
    path = folder / "encoded.safetensors"
    if path.is_file():
        return load_file(path)
    films, _ = film_examples()
    examples = films + made_up_examples(MADE_UP, seed=1)
    model = autoencoder()
    model.load_state_dict(load_file(folder / "autoencoder.safetensors"))
    model = model.to(DEVICE, memory_format=torch.channels_last).eval()
    latents = []
    for start in range(0, len(examples), 64):
        image = pixels([cover for _, cover in examples[start : start + 64]]).to(DEVICE).float() / 127.5 - 1
        with _autocast():
            latents.append(model.encoder(image.contiguous(memory_format=torch.channels_last)).float().cpu())
    table = torch.cat(latents)
    states = caption_states([caption for caption, _ in examples] + [""])
    encoded = {
        "latents": (table / table.std()).half(),
        "scale": (1 / table.std()).reshape(1),
        "states": states.half(),
        "films": torch.tensor([len(films)]),
    }
    save_file(encoded, path)
    return encoded


@torch.no_grad()
def caption_states(captions: list[str]) -> Tensor:
    """Last hidden states of the frozen text encoder, float32 (N, 32, 384), as the pipeline is prompted."""
    encoder = text_encoder(ENCODER)
    states = []
    for start in range(0, len(captions), 128):
        batch = encoder.tokenizer(
            captions[start : start + 128],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        states.append(encoder.model(**batch).last_hidden_state)
    return torch.cat(states)


def train_denoiser(folder: Path, steps: int, batch: int = 32, peak: float = 5e-4) -> None:
    """Velocity loss with an exponential average of the weights."""
    encoded = encode_all(folder)
    latents, states, n_films = encoded["latents"].to(DEVICE), encoded["states"].to(DEVICE), int(encoded["films"])
    torch.manual_seed(0)
    model = denoiser().to(DEVICE)
    average = denoiser().to(DEVICE).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01)
    checkpoint, start = Checkpoint(folder, "denoiser"), 0
    if found := checkpoint.load():
        model.load_state_dict({k[4:]: v for k, v in found[0].items() if k.startswith("now.")})
        average.load_state_dict({k[4:]: v for k, v in found[0].items() if k.startswith("ema.")})
        optimizer.load_state_dict(found[1]["optimizer"])
        start = found[1]["step"]
    schedule = noise_schedule()
    chance = torch.Generator().manual_seed(1_000_003 + start)
    began, total = time.time(), 0.0
    for step in range(start, steps):
        film = torch.rand(batch, generator=chance) < FILM_SHARE
        rows = torch.where(
            film,
            torch.randint(n_films, (batch,), generator=chance),
            torch.randint(n_films, len(latents), (batch,), generator=chance),
        )
        text = torch.where(torch.rand(batch, generator=chance) < NO_TEXT, len(states) - 1, rows)
        noise = torch.randn(batch, *latents.shape[1:], generator=chance).to(DEVICE)
        times = torch.randint(0, 1000, (batch,), generator=chance)
        clean = latents[rows].float()
        noisy = schedule.add_noise(clean, noise, times)
        target = schedule.get_velocity(clean, noise, times)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        with _autocast():
            output = model(noisy, times.to(DEVICE), states[text].float()).sample
        loss = F.mse_loss(output.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        total += loss.item()
        if (step + 1) % 100 == 0:
            each = (time.time() - began) / (step + 1 - start)
            print(f"denoiser {step + 1}/{steps} loss {total / 100:.4f} {each:.2f} s/step", flush=True)
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            tensors = {f"now.{k}": v for k, v in model.state_dict().items()}
            tensors |= {f"ema.{k}": v for k, v in average.state_dict().items()}
            checkpoint.save(tensors, optimizer=optimizer.state_dict(), step=step + 1, loss=loss.item())


def export(folder: Path, target: Path) -> None:
    """Write the pipeline's folder in fp16, as `DiffusionPipeline.from_pretrained` loads it."""
    from diffusers import StableDiffusionPipeline

    found = Checkpoint(folder, "denoiser").load()
    if found is None:
        raise SystemExit(f"{folder}: no denoiser yet; train it first")
    unet, vae = denoiser(), autoencoder()
    unet.load_state_dict({k[4:]: v for k, v in found[0].items() if k.startswith("ema.")})
    vae.load_state_dict(load_file(folder / "autoencoder.safetensors"))
    vae.register_to_config(scaling_factor=float(encode_all(folder)["scale"]))
    scheduler = DPMSolverMultistepScheduler.from_config(noise_schedule().config, timestep_spacing="trailing")
    pipeline = StableDiffusionPipeline(
        vae=vae.half(), unet=unet.half(), scheduler=scheduler, text_encoder=None, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(target, safe_serialization=True)
    conditioning = {"text_encoder": ENCODER, "max_length": TOKENS, "steps": found[1]["step"]}
    (target / "conditioning.json").write_text(json.dumps(conditioning, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
    print(f"{target}: {size:.1f} MiB after {found[1]['step']} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("autoencoder", "denoiser", "export"))
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--target", type=Path, help="folder of the exported pipeline")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.stage == "autoencoder":
        train_autoencoder(arguments.folder, arguments.steps)
    elif arguments.stage == "denoiser":
        train_denoiser(arguments.folder, arguments.steps)
    else:
        export(arguments.folder, arguments.target)


if __name__ == "__main__":
    main()
