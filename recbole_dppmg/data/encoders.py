"""Frozen encoders of item texts and images: the same ones score generated content in the reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_dppmg.assets import resolve
from recbole_dppmg.data.images import load_batch
from recbole_dppmg.errors import AssetError

_BATCH = 64


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


class TextEncoder:
    """Mean-pooled, unit-length sentence embeddings (Sentence-BERT, arXiv 1908.10084)."""

    def __init__(self, name: str):
        from transformers import AutoModel, AutoTokenizer

        folder = resolve(name)
        self.name = name
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = _frozen(AutoModel.from_pretrained(folder, dtype=torch.float32))
        self.max_length = min(self.tokenizer.model_max_length, 128)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts to float32 (N, D), rows of unit length, in the order given."""
        lengths = [len(text) for text in texts]
        order = sorted(range(len(texts)), key=lengths.__getitem__)  # short with short: little padding
        chunks = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        rows = torch.cat([self._embed([texts[i] for i in chunk]) for chunk in chunks])
        return torch.empty_like(rows).index_copy_(0, torch.tensor(order), rows)

    def _embed(self, texts: list[str]) -> Tensor:
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        if hasattr(self.model, "get_text_features"):
            features = self.model.get_text_features(**batch)
            return F.normalize(getattr(features, "pooler_output", features), dim=-1)
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


class ImageEncoder:
    """Unit-length image features; differentiable, so that a reward reaches the pixels."""

    def __init__(self, name: str):
        folder = resolve(name)
        self.name = name
        if weights := next(folder.glob("efficientnet-lite*.pth"), None):
            self.size, mean, std, self._features = _efficientnet_lite(weights)
        else:
            self.size, mean, std, self._features = _transformers_vision(folder)
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images float32 (N, 3, H, W) in [0, 1] to features (N, D), rows of unit length, with gradient."""
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return F.normalize(self._features((images - self.mean) / self.std), dim=-1)

    @torch.no_grad()
    def encode(self, paths: Sequence[Path]) -> Tensor:
        """Image files to float32 (N, D)."""
        chunks = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
        return torch.cat([self(load_batch(chunk, self.size)) for chunk in chunks])


def _efficientnet_lite(weights: Path):
    """EfficientNet-Lite's pooled features, 1280-d, with the scaling of the official release: (x - 127) / 128."""
    from efficientnet_lite_pytorch import EfficientNet

    name = weights.name[: len("efficientnet-lite0")]
    model = EfficientNet.from_name(name)
    model.load_state_dict(torch.load(weights, weights_only=True))
    _frozen(model)

    def features(x: Tensor) -> Tensor:
        return model.extract_features(x).mean((2, 3))

    return EfficientNet.get_image_size(name), [127 / 255] * 3, [128 / 255] * 3, features


def _transformers_vision(folder: Path):
    """Any transformers vision model, or a CLIP's image side."""
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        model = _frozen(AutoModel.from_pretrained(folder, dtype=torch.float32))
    except (OSError, ValueError) as error:
        raise AssetError(f"image_encoder: {folder} is no transformers vision model ({error})") from error
    size = getattr(processor, "crop_size", None) or processor.size

    def features(x: Tensor) -> Tensor:
        if hasattr(model, "get_image_features"):
            output = model.get_image_features(pixel_values=x)
            return getattr(output, "pooler_output", output)
        output = model(pixel_values=x)
        pooled = getattr(output, "pooler_output", None)
        return pooled.flatten(1) if pooled is not None else output.last_hidden_state.mean(1)

    edge = size["height"] if "height" in size else size["shortest_edge"]
    return edge, processor.image_mean, processor.image_std, features


@cache
def text_encoder(name: str) -> TextEncoder:
    """The text encoder of that name, loaded once per process."""
    return TextEncoder(name)


@cache
def image_encoder(name: str) -> ImageEncoder:
    """The image encoder of that name, loaded once per process."""
    return ImageEncoder(name)
