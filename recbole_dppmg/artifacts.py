"""Files that are either whole or absent: atomic writes, checksums, manifests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_dppmg.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` durably, on failure it vanishes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp creates private files; an artifact is shared like any other file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically; shared storage is written out per name."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        # clone: safetensors refuses tensors that share memory, e.g. views of one table
        contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata=dict(metadata or {}))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        BundleError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read as safetensors ({error}); copy or train it again") from error


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """A short stable key (16 hexadecimal digits) of JSON-serialisable values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_manifest(directory: str | Path, packages: tuple[str, ...] = ("torch", "transformers", "diffusers")) -> None:
    """Record the sha256 of every file under `directory` and the versions that wrote them."""
    directory = Path(directory)
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    write_json(
        directory / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "versions": {name: version(name) for name in packages},
            "sha256": {p.relative_to(directory).as_posix(): sha256_of(p) for p in files},
        },
    )


def check_manifest(directory: str | Path) -> None:
    """Compare every file under `directory` with its manifest.

    Raises:
        BundleError: naming the first file that is missing, changed or not listed.
    """
    directory = Path(directory)
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        expected, written_by = dict(manifest["sha256"]), manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{directory / MANIFEST}: missing or damaged ({error}); this is not a complete bundle"
        ) from error
    if written_by != FORMAT_VERSION:
        raise BundleError(f"{directory / MANIFEST}: format {written_by}, this version reads {FORMAT_VERSION}")
    present = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST}
    for name in sorted(present | expected.keys()):
        if name not in present:
            raise BundleError(f"{directory / name}: named in the manifest but missing; copy the bundle again")
        if name not in expected:
            raise BundleError(f"{directory / name}: not named in the manifest; remove it or write the bundle again")
        if sha256_of(directory / name) != expected[name]:
            raise BundleError(f"{directory / name}: does not match its sha256 in the manifest; copy the bundle again")
