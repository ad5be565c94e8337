"""Real, small, deterministic heads for the server's tests; the generators' process imports them by name.

They misbehave on request: while `$SERVING_HEADS_DIR` holds a file `hang`, `raise`, `die` or `slow`.
"""

import os
import time
from pathlib import Path

from PIL import Image, ImageDraw

from recbole_dppmg.types import ImageResult, TextResult, token_names


class _Head:
    def __init__(self, model, codebooks, settings, seed):
        self.codebooks = codebooks

    def parameters(self):
        return []

    def save(self, directory):
        Path(directory, "head.json").write_text("{}\n")

    def load(self, directory):
        assert Path(directory, "head.json").is_file()

    def misbehave(self, batch):
        folder = Path(os.environ.get("SERVING_HEADS_DIR", "/nonexistent"))
        if (folder / "raise").exists():
            raise RuntimeError(f"the {type(self).__name__} is told to fail")
        if (folder / "die").exists():
            os._exit(9)
        while (folder / "hang").exists():
            time.sleep(0.05)
        if (folder / "slow").exists():
            time.sleep(0.4)
        if any("Cursed" in request.item.title for request in batch):
            raise ValueError("cannot speak of that")


class SayHead(_Head):
    """Names the item and the tokens."""

    name = "serving_heads:SayHead"

    def generate(self, batch):
        self.misbehave(batch)
        return [TextResult(f"{r.item.title}, because of {' '.join(self._said(r))} ({r.seed}).") for r in batch]

    @staticmethod
    def _said(request):
        return [name for names in token_names(request.tokens).values() for name in names]


class PaintHead(_Head):
    """Stripes in colours that follow from the tokens, the item and the seed."""

    name = "serving_heads:PaintHead"

    def generate(self, batch):
        self.misbehave(batch)
        return [ImageResult(self._painted(r)) for r in batch]

    @staticmethod
    def _painted(request):
        codes = [code for codes in request.tokens.values() for code in codes]
        image = Image.new("RGB", (64, 64))
        pen = ImageDraw.Draw(image)
        for n, code in enumerate(codes):
            hue = (37 * code + 11 * len(request.item.title) + request.seed) % 256
            width = 64 // len(codes) + 1
            pen.rectangle([n * width, 0, (n + 1) * width, 64], fill=(hue, 255 - hue, (hue * 5) % 256))
        return image
