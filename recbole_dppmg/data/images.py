"""Finding and opening item images without trusting them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
_SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_GLANCE = (64, 64)  # a JPEG is decoded at this size or a little more to see whether it is whole
_BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFault:
    """What is wrong with an item's image: it is left out, or it is `used` after a conversion."""

    item: str
    file: str
    reason: str
    used: bool = False


def locate_images(
    items: Sequence[Item], dataset_dir: Path, settings: ContentSettings
) -> tuple[list[Item], list[ImageFault]]:
    """The items with the path of their image where there is a good one, and the faults of all others.

    `image_dir` is searched for the file that the image column of `.item` names or, without that column, for
    `{item_id}.jpg` and kin; `drawn` draws covers; without `image_dir`, the column is relative to the dataset's folder.
    Every file is decoded once, so that no bad one is met later.

    Raises:
        ConfigError: `image_dir` does not exist.
        DataError: there are images, and none of them can be used.
    """
    if settings.image_dir == DRAWN:
        from recbole_dppmg.data.covers import ensure_covers

        described = [item for item in items if item.title]
        key = fingerprint(dataset_dir.name, [item.id for item in described])
        paths = ensure_covers(described, cache_dir() / "covers" / f"{dataset_dir.name}-{key}")
        return [replace(item, image=paths.get(item.id)) for item in items], []
    root = Path(settings.image_dir).expanduser() if settings.image_dir else dataset_dir
    if settings.image_dir and not root.is_dir():
        raise ConfigError(f"image_dir: '{root}' is no folder; give one with {{item_id}}.jpg, or '{DRAWN}'")
    if any(item.image for item in items):
        named = {item.id: root / item.image for item in items if item.image}
    else:
        named = _by_id(items, root) if settings.image_dir else {}
    with ThreadPoolExecutor() as pool:  # decoding leaves Python alone
        found = dict(zip(named, pool.map(lambda path: _judge(path, root.resolve()), named.values()), strict=True))
    faults = [
        ImageFault(item, str(named[item]).removeprefix(f"{root}/"), reason, used)
        for item, (reason, used) in found.items()
        if reason
    ]
    good = {item for item, (_, used) in found.items() if used}
    if found and not good:
        first = faults[0]
        raise DataError(f"images in {root}: none of {len(faults)} can be used; first {first.file}: {first.reason}")
    return [replace(item, image=named[item.id] if item.id in good else None) for item in items], faults


def _by_id(items: Sequence[Item], folder: Path) -> dict[str, Path]:
    """Files by the item that their name is the id of; where there are several, one of a known kind goes first."""
    known = {item.id for item in items if item.id}
    files = sorted(folder.iterdir(), key=lambda path: (path.suffix.lower() in _SUFFIXES, path.name))
    return {path.stem: path for path in files if path.stem in known and not path.is_dir()}


def _judge(path: Path, root: Path) -> tuple[str, bool]:
    """What is to be said of a file, empty if nothing, and whether it can be used."""
    if not path.resolve().is_relative_to(root):
        return f"leads out of {root}; move it inside", False
    if not path.is_file():
        return "no such file", False
    try:
        return _peculiarities(path), True
    except DataError as error:
        return str(error).removeprefix(f"image {path}: "), False


def _peculiarities(path: Path) -> str:
    """Decode a file; in words, what is lost when it becomes an RGB image of 8 bits."""
    with _opened(path) as image:
        notes, kind = [], {"MPO": "JPEG"}.get(image.format, image.format)  # MPO is a JPEG with a second view
        try:
            if kind != _SUFFIXES.get(path.suffix.lower()):
                notes.append(f"is {kind} by its content")
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                notes.append("animated, its first frame is used")
            if image.mode == "CMYK":
                notes.append("CMYK, converted to RGB")
            if image.mode.startswith("I"):
                notes.append("16 bits per channel, reduced to 8")
            image.draft(None, _GLANCE)
            image.load()
        except _BROKEN as error:
            raise _unreadable(path, error) from error
    return "; ".join(notes)


def _opened(path: Path) -> Image.Image:
    """The file's header, read and found good."""
    try:
        image = Image.open(path, formats=_FORMATS)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(f"image {path}: {image.width} x {image.height} pixels; the cap is {MAX_PIXELS}")
    return image


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = "it is empty" if path.is_file() and not path.stat().st_size else error
    return DataError(f"image {path}: cannot be read as JPEG, PNG or WebP ({reason}); replace or remove it")


def open_image(path: Path) -> Image.Image:
    """Decode a JPEG, PNG or WebP file to RGB, the first frame of an animated one.

    Raises:
        DataError: naming the file, if it is damaged, of another format or too large.
    """
    with _opened(path) as image:
        try:
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
        except _BROKEN as error:
            raise _unreadable(path, error) from error


def load_batch(paths: Sequence[Path], size: int) -> Tensor:
    """Images as float32 (N, 3, size, size) in [0, 1], resized to a square with antialiasing."""
    images = [open_image(path).resize((size, size), Image.Resampling.BICUBIC) for path in paths]
    return to_tensor(images)


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as float32 (N, 3, H, W) in [0, 1]."""
    array = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
