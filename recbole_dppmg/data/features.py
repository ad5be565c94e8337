"""The feature store: frozen item features, computed once and kept on disk.

A row is keyed by the sha256 of the item's text or of its image file's bytes, a store by the encoder, so that
changed content is encoded anew and everything else is read back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recbole_dppmg.artifacts import fingerprint, load_tensors, save_tensors, sha256_of
from recbole_dppmg.assets import cache_dir, resolve
from recbole_dppmg.errors import BundleError
from recbole_dppmg.progress import progress
from recbole_dppmg.settings import ContentSettings
from recbole_dppmg.types import Item

logger = logging.getLogger(__name__)

_CHUNK = 128


def item_features(items: Sequence[Item], modality: str, settings: ContentSettings) -> tuple[Tensor, Tensor]:
    """Frozen features of all items in one modality.

    Returns:
        features, float32 (n, D), zero where the item lacks the modality (D = 1 if all do),
        and a bool mask (n,) of the items that have it.
    """
    present = [i for i, item in enumerate(items) if (item.text if modality == "text" else item.image)]
    mask = torch.zeros(len(items), dtype=torch.bool)
    if not present:
        return torch.zeros(len(items), 1), mask
    mask[present] = True
    if modality == "text":
        contents = [items[i].text for i in present]
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in contents]
        encoder = settings.text_encoder
    else:
        contents = [items[i].image for i in present]
        keys = [sha256_of(path) for path in contents]
        encoder = settings.image_encoder
    rows = _store(modality, encoder, settings, keys, contents)
    features = torch.zeros(len(items), rows.shape[1])
    features[present] = rows
    return features, mask


def _store(modality: str, encoder: str, settings: ContentSettings, keys: list[str], contents: list) -> Tensor:
    folder = Path(settings.feature_cache).expanduser() if settings.feature_cache else cache_dir() / "features"
    path = folder / f"{modality}-{_encoder_key(encoder)}.safetensors"
    known, table = _read(path)
    missing = {key: content for key, content in zip(keys, contents, strict=True) if key not in known}
    logger.info("features %s: %d read, %d to encode with %s", modality, len(keys) - len(missing), len(missing), encoder)
    if missing:
        encode = _encode_function(modality, encoder)
        pending = list(missing.items())
        starts = range(0, len(pending), _CHUNK)
        bar = progress(starts, f"encode {modality}", unit="batch")
        rows = [encode([content for _, content in pending[s : s + _CHUNK]]) for s in bar]
        table = torch.cat([table, *rows]) if len(table) else torch.cat(rows)
        known |= {key: len(known) + n for n, (key, _) in enumerate(pending)}
        digests = torch.tensor([list(bytes.fromhex(key)) for key in known], dtype=torch.uint8)
        save_tensors(path, {"sha256": digests, "features": table})
    return table[[known[key] for key in keys]]


def _read(path: Path) -> tuple[dict[str, int], Tensor]:
    if not path.is_file():
        return {}, torch.zeros(0, 0)
    try:
        tensors = load_tensors(path)
    except BundleError as error:
        logger.warning("%s; encoding again", error)
        return {}, torch.zeros(0, 0)
    return {bytes(row).hex(): n for n, row in enumerate(tensors["sha256"].numpy())}, tensors["features"]


def _encode_function(modality: str, encoder: str) -> Callable[[list], Tensor]:
    from recbole_dppmg.data import encoders

    return (encoders.text_encoder if modality == "text" else encoders.image_encoder)(encoder).encode


def _encoder_key(encoder: str) -> str:
    """Changes when the encoder's files do."""
    files = sorted(path for path in resolve(encoder).rglob("*") if path.is_file())
    return fingerprint(Path(encoder).name, [(path.name, path.stat().st_size) for path in files])
