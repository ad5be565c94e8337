"""Draw 48 held-out captions with the embedded pipeline, seed 0, uncurated: what the README's gallery shows.

    python tools/sample_compact_diffusion.py --pipeline=recbole_dppmg/weights/compact-diffusion --target=gallery.png

The upper row of each pair is generated, the lower one is the cover that the caption describes. Also measured: in
groups of 20 captions, how often the true cover nearest to a generated image, by features of the frozen image
encoder (which the pipeline was not trained with), is that of its own caption; chance is 5 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from compact_data import Example, film_examples, made_up_examples, pixels
from PIL import Image, ImageDraw
from torch import Tensor
from train_compact_diffusion import caption_states

from recbole_dppmg.data.encoders import image_encoder

_ACROSS, _SHOWN, _GROUP = 12, 48, 20


@torch.no_grad()
def generate(folder: Path, captions: list[str], steps: int, guidance: float, seed: int) -> Tensor:
    """Images float32 (N, 3, 128, 128) in [0, 1]; each caption has noise of its own."""
    from diffusers import DiffusionPipeline

    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = DiffusionPipeline.from_pretrained(folder, **parts, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    states, empty = caption_states(captions), caption_states([""])
    images = []
    for start in range(0, len(captions), 16):
        chunk = states[start : start + 16]
        noise = [torch.Generator().manual_seed(seed * 100_003 + start + n) for n in range(len(chunk))]
        images.append(
            pipeline(
                prompt_embeds=chunk, negative_prompt_embeds=empty.expand(len(chunk), -1, -1), generator=noise,
                num_inference_steps=steps, guidance_scale=guidance, output_type="pt",
            ).images
        )  # fmt: skip
    return torch.cat(images).float()


def held_out(number: int) -> list[Example]:
    """Held-out films and made-up covers, half of each."""
    _, films = film_examples()
    return films[: number // 2] + made_up_examples(number - number // 2, seed=99)


def identified(generated: Tensor, true: Tensor) -> float:
    """Share of generated images that are nearest to their own cover among the 20 of their group."""
    encoder = image_encoder("efficientnet-lite0")
    with torch.no_grad():
        own, covers = encoder(generated), encoder(true)
    groups = torch.arange(len(own)).split(_GROUP)
    right = [(own[g] @ covers[g].T).argmax(1) == torch.arange(len(g)) for g in groups if len(g) == _GROUP]
    return torch.cat(right).float().mean().item()


def sheet(generated: Tensor, true: Tensor, captions: list[str]) -> Image.Image:
    """Pairs of generated image and true cover with their captions."""
    rows = -(-len(captions) // _ACROSS)
    image = Image.new("RGB", (_ACROSS * 132, rows * 280), "white")
    pen = ImageDraw.Draw(image)
    for n, caption in enumerate(captions):
        x, y = n % _ACROSS * 132, n // _ACROSS * 280
        for k, table in enumerate((generated, true)):
            array = table[n].mul(255).round().byte().permute(1, 2, 0).numpy()
            image.paste(Image.fromarray(array), (x, y + 130 * k))
        pen.text((x, y + 260), caption[:24], fill="black")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--number", type=int, default=120, help="captions to measure; the first 48 are shown")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    arguments = parser.parse_args()
    examples = held_out(arguments.number)
    captions = [caption for caption, _ in examples]
    true = pixels([cover for _, cover in examples]).float() / 255
    images = generate(arguments.pipeline, captions, arguments.steps, arguments.guidance, seed=0)
    half = len(captions) // 2
    for name, rows in (("films", slice(0, half)), ("made up", slice(half, None))):
        print(f"{name}: own cover found among {_GROUP}: {identified(images[rows], true[rows]):.3f} (chance 0.05)")
    shown = [*range(_SHOWN // 2), *range(half, half + _SHOWN // 2)] if len(captions) >= _SHOWN else range(len(captions))
    sheet(images[list(shown)], true[list(shown)], [captions[n] for n in shown]).save(arguments.target)


if __name__ == "__main__":
    main()
