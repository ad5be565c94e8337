"""Finding and opening item images without trusting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from recbole_dppmg.artifacts import fingerprint
from recbole_dppmg.assets import cache_dir
from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.settings import ContentSettings
from recbole_dppmg.types import Item

DRAWN = "drawn"
MAX_PIXELS = 32_000_000
_FORMATS = ("JPEG", "PNG", "WEBP")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def locate_images(items: Sequence[Item], dataset_dir: Path, settings: ContentSettings) -> list[Item]:
    """The items with the path of their image, where there is one.

    `image_dir` is searched for `{item_id}.jpg` and kin; `drawn` draws covers; otherwise the image column of
    `.item`, relative to the dataset's folder, is used.

    Raises:
        ConfigError: `image_dir` does not exist.
        DataError: an image's path leads out of the dataset's folder, or names no file.
    """
    if settings.image_dir == DRAWN:
        from recbole_dppmg.data.covers import ensure_covers

        described = [item for item in items if item.title]
        key = fingerprint(dataset_dir.name, [item.id for item in described])
        paths = ensure_covers(described, cache_dir() / "covers" / f"{dataset_dir.name}-{key}")
        return [replace(item, image=paths.get(item.id)) for item in items]
    if settings.image_dir:
        return _from_folder(items, Path(settings.image_dir).expanduser())
    return [replace(item, image=_inside(dataset_dir, item)) if item.image else item for item in items]


def _from_folder(items: Sequence[Item], folder: Path) -> list[Item]:
    if not folder.is_dir():
        raise ConfigError(f"image_dir: '{folder}' is no folder; give one with {{item_id}}.jpg, or '{DRAWN}'")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES}
    return [replace(item, image=found.get(item.id)) for item in items]


def _inside(root: Path, item: Item) -> Path:
    path = (root / item.image).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"item '{item.id}': image '{item.image}' lies outside {root}; move it inside")
    if not path.is_file():
        raise DataError(f"item '{item.id}': image {path} does not exist; add it or empty the cell")
    return path


def open_image(path: Path) -> Image.Image:
    """Decode a JPEG, PNG or WebP file to RGB.

    Raises:
        DataError: naming the file, if it is damaged, of another format or too large.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"image {path}: {image.width} x {image.height} pixels; the cap is {MAX_PIXELS}")
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path}: cannot be read as JPEG, PNG or WebP ({error}); replace or remove it") from error


def load_batch(paths: Sequence[Path], size: int) -> Tensor:
    """Images as float32 (N, 3, size, size) in [0, 1], resized to a square with antialiasing."""
    images = [open_image(path).resize((size, size), Image.Resampling.BICUBIC) for path in paths]
    return to_tensor(images)


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as float32 (N, 3, H, W) in [0, 1]."""
    array = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
