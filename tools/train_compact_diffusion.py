"""Train the embedded image pipeline: latents, a decoder of them, and a denoiser, all of diffusers' classes.

    python tools/train_compact_diffusion.py latents  --folder=build/compact
    python tools/train_compact_diffusion.py decoder  --folder=build/compact --steps=2500
    python tools/train_compact_diffusion.py denoiser --folder=build/compact --steps=7000
    python tools/train_compact_diffusion.py export   --folder=build/compact --target=DIR

The latents are linear: the 16 principal components of 8 x 8 pixels, which covers of flat colours lose little by,
and which need no training. So the decoder and the denoiser train at the same time, side by side. Each can be
killed and started again: it goes on from its last checkpoint; `--start=DIR` goes on from an exported pipeline. On a
GPU it uses it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from compact_data import Example, film_examples, made_up_examples, pixels
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from principal_autoencoder import CHANNELS, autoencoder, principal_autoencoder
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from recbole_dppmg.data.encoders import text_encoder
from recbole_dppmg.generators.pipelines import token_states

CARD = """\
---
license: cc-by-sa-4.0
library_name: diffusers
pipeline_tag: text-to-image
---
# compact-diffusion

A latent diffusion model that draws covers of 128 x 128 pixels: one or two icons before a pattern, in the colours of a
genre. It is small so that it runs on two CPU cores, and knows nothing but such covers.

- **Parts**: `UNet2DConditionModel` ({million:.1f} M parameters, velocity prediction, cosine schedule) on 16 x 16
  latents of 16 channels; `AutoencoderTiny` whose encoder is a fixed projection on principal components; DPM-Solver++.
- **Prompt**: last hidden states of all-MiniLM-L6-v2, padded to {tokens} tokens, no mask; the text encoder is not in
  this folder. `DiffusionPipeline.from_pretrained(DIR, text_encoder=None, tokenizer=None, safety_checker=None,
  feature_extractor=None)` loads it; pass `prompt_embeds` and `negative_prompt_embeds` (states of `""`).
- **Data**: drawn covers of {films} films of MovieLens-100k (every tenth film is held out), captioned by title, year and
  genres, and {made_up} covers of random OpenMoji icons, captioned by titles made of the icons' words or by what is on
  them. `tools/compact_data.py` draws them.
- **Training**: `tools/train_compact_diffusion.py` (its first lines are the commands): denoiser {steps} steps of 32,
  last velocity loss {loss:.3f} (mean of {window} steps); decoder {decoder_steps} steps of 8, last L1 {l1:.4f} of a
  range of 2. On two shared cores of an AMD EPYC, in bf16, about an hour.
- **Limits**: small icons and icons seen rarely come out as blots. What is measured of it is in `benchmarks/RESULTS.md`.
- **Licence**: CC BY-SA 4.0, since it is trained on [OpenMoji](https://openmoji.org).
"""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ENCODER, TOKENS = "all-MiniLM-L6-v2", 32
MADE_UP = 9000
FILM_SHARE = 0.4  # of the training batches
NOISE = 0.15  # at most, in the decoder's training, as a share of the latents' spread
RARE = 0.25  # how often made-up covers are drawn of icons that no title names
NO_TEXT = 0.1  # share of captions left out, for guidance
EMA = 0.999
_EVERY = 100  # steps between lines of the log


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


def examples() -> list[Example]:
    """All that is trained on, films first."""
    return film_examples()[0] + made_up_examples(MADE_UP, seed=1)


@torch.no_grad()
def make_latents(folder: Path) -> None:
    """Write the autoencoder as it starts, latents of every cover at unit variance, states of every caption."""
    found = examples()
    films = len(film_examples()[0])
    covers = [cover for _, cover in found]
    # icons that titles name are what will be asked for most
    named = {cover.main for cover in covers[:films]}
    often = torch.tensor([1.0 if cover.main in named else RARE for cover in covers])
    often[:films] *= FILM_SHARE / often[:films].sum()
    often[films:] *= (1 - FILM_SHARE) / often[films:].sum()
    model = principal_autoencoder(pixels(covers[:: len(covers) // 1500])).eval()
    parts = []
    for start in range(0, len(covers), 64):
        parts.append(model.encoder(pixels(covers[start : start + 64]).float() / 127.5 - 1))
    latents = torch.cat(parts)
    scale = 1 / latents.std()
    states = caption_states([caption for caption, _ in found] + [""])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "start.safetensors")
    tensors = {"latents": (latents * scale).half(), "states": states.half(), "scale": scale.reshape(1)}
    save_file(tensors | {"often": often}, folder / "encoded.safetensors")
    print(f"{films} films, {len(covers) - films} made-up covers, latents scaled by {scale:.3f}")


def train_decoder(folder: Path, steps: int, batch: int = 8, peak: float = 1e-3) -> None:
    """L1 of pixels and of outlines; the encoder stays as it is. Latents get a little noise, as generated ones have."""
    model = autoencoder()
    model.load_state_dict(load_file(folder / "start.safetensors"))
    model.to(DEVICE)
    model.encoder.requires_grad_(False)
    decoder = model.decoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    checkpoint, start = Checkpoint(folder, "decoder"), 0
    if found := checkpoint.load():
        decoder.load_state_dict(found[0])
        optimizer.load_state_dict(found[1]["optimizer"])
        start = found[1]["step"]
    covers = [cover for _, cover in examples()]
    chance = torch.Generator().manual_seed(start)
    began, total, recent = time.time(), 0.0, 0.0
    for step in range(start, steps):
        chosen = torch.randint(len(covers), (batch,), generator=chance).tolist()
        image = pixels([covers[n] for n in chosen]).to(DEVICE).float() / 127.5 - 1
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        with torch.no_grad():
            latents = model.encoder(image)
            noise = torch.randn(latents.shape, generator=chance).to(DEVICE)
            strength = NOISE * torch.rand(batch, 1, 1, 1, generator=chance).to(DEVICE)
            latents = (latents + strength * noise * latents.std()).contiguous(memory_format=torch.channels_last)
        with _autocast():
            output = decoder(latents)
        error = output.float() - image
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = error.abs().mean() + 0.5 * edges
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        total += error.detach().abs().mean().item()
        if (step + 1) % _EVERY == 0:
            each, recent, total = (time.time() - began) / (step + 1 - start), total / _EVERY, 0.0
            print(f"decoder {step + 1}/{steps} L1 {recent:.4f} {each:.2f} s/step", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            checkpoint.save(decoder.state_dict(), optimizer=optimizer.state_dict(), step=step + 1, l1=recent)


@torch.no_grad()
def caption_states(captions: list[str]) -> Tensor:
    """What the pipeline is prompted with: float32 (N, 32, 384)."""
    encoder = text_encoder(ENCODER)
    return torch.cat([token_states(encoder, captions[n : n + 128], TOKENS) for n in range(0, len(captions), 128)])


def train_denoiser(folder: Path, steps: int, origin: Path | None, batch: int = 32, peak: float = 5e-4) -> None:
    """Velocity loss with an exponential average of the weights."""
    encoded = load_file(folder / "encoded.safetensors")
    latents, states = encoded["latents"].to(DEVICE), encoded["states"].to(DEVICE)
    torch.manual_seed(0)
    model = (UNet2DConditionModel.from_pretrained(origin, subfolder="unet") if origin else denoiser()).to(DEVICE)
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
    began, total, recent = time.time(), 0.0, 0.0
    for step in range(start, steps):
        rows = torch.multinomial(encoded["often"], batch, generator=chance)
        text = torch.where(torch.rand(batch, generator=chance) < NO_TEXT, len(states) - 1, rows)
        noise = torch.randn(batch, *latents.shape[1:], generator=chance).to(DEVICE)
        # noisy ones more often: what is drawn is decided there
        times = (1000 * torch.rand(batch, generator=chance).sqrt()).long()
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
        if (step + 1) % _EVERY == 0:
            each, recent, total = (time.time() - began) / (step + 1 - start), total / _EVERY, 0.0
            print(f"denoiser {step + 1}/{steps} loss {recent:.4f} {each:.2f} s/step", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            tensors = {f"now.{k}": v for k, v in model.state_dict().items()}
            tensors |= {f"ema.{k}": v for k, v in average.state_dict().items()}
            checkpoint.save(tensors, optimizer=optimizer.state_dict(), step=step + 1, loss=recent)


def export(folder: Path, target: Path) -> None:
    """Write the pipeline's folder in fp16, as `DiffusionPipeline.from_pretrained` loads it."""
    from diffusers import StableDiffusionPipeline

    found = Checkpoint(folder, "denoiser").load()
    if found is None:
        raise SystemExit(f"{folder}: no denoiser yet; train it first")
    unet, vae = denoiser(), autoencoder()
    unet.load_state_dict({k[4:]: v for k, v in found[0].items() if k.startswith("ema.")})
    vae.load_state_dict(load_file(folder / "start.safetensors"))
    vae.decoder.load_state_dict(load_file(folder / "decoder.safetensors"))
    vae.register_to_config(scaling_factor=float(load_file(folder / "encoded.safetensors")["scale"]))
    scheduler = DPMSolverMultistepScheduler.from_config(
        noise_schedule().config,
        timestep_spacing="trailing",
        steps_offset=1,
        lambda_min_clipped=-5.1,  # the cosine schedule ends beyond what the solver can divide by
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.half(), unet=unet.half(), scheduler=scheduler, text_encoder=None, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(target, safe_serialization=True)
    _drop(target / "vae" / "config.json", "block_out_channels")  # written, but not read back
    conditioning = {"text_encoder": ENCODER, "max_length": TOKENS, "steps": found[1]["step"]}
    (target / "conditioning.json").write_text(json.dumps(conditioning, indent=1) + "\n", encoding="utf-8")
    decoder = torch.load(folder / "decoder.state", weights_only=True)
    card = CARD.format(
        million=sum(p.numel() for p in unet.parameters()) / 1e6, tokens=TOKENS, made_up=MADE_UP,
        films=len(load_file(folder / "encoded.safetensors")["latents"]) - MADE_UP, window=_EVERY,
        steps=found[1]["step"], loss=found[1]["loss"], decoder_steps=decoder["step"], l1=decoder["l1"],
    )  # fmt: skip
    (target / "README.md").write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20
    print(f"{target}: {size:.1f} MiB after {found[1]['step']} steps")


def _drop(path: Path, key: str) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    del config[key]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("latents", "decoder", "denoiser", "export"))
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--start", type=Path, help="folder of an exported pipeline whose denoiser is trained further")
    parser.add_argument("--target", type=Path, help="folder of the exported pipeline")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.stage == "latents":
        make_latents(arguments.folder)
    elif arguments.stage == "decoder":
        train_decoder(arguments.folder, arguments.steps)
    elif arguments.stage == "denoiser":
        train_denoiser(arguments.folder, arguments.steps, arguments.start)
    else:
        export(arguments.folder, arguments.target)


if __name__ == "__main__":
    main()
