import json

import pytest
import torch

from recbole_dppmg.artifacts import atomic_path, check_manifest, load_tensors, save_tensors, write_json, write_manifest
from recbole_dppmg.errors import BundleError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"v": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"v": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_tensors_round_trip_even_if_they_share_memory(tmp_path):
    table = torch.arange(6.0).view(2, 3)
    save_tensors(tmp_path / "t.safetensors", {"whole": table, "row": table[0]})
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(loaded["whole"], table)
    assert torch.equal(loaded["row"], table[0])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "heads").mkdir()
    save_tensors(tmp_path / "model.safetensors", {"x": torch.ones(3)})
    write_json(tmp_path / "heads" / "config.json", {"a": 1})
    write_manifest(tmp_path)
    return tmp_path


def test_an_untouched_folder_passes(folder):
    check_manifest(folder)


def _flip(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_flip, "model.safetensors"),
        (lambda f: (f / "heads" / "config.json").unlink(), "config.json"),
        (lambda f: (f / "planted.pkl").write_bytes(b"x"), "planted.pkl"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
    ],
)
def test_damage_is_refused_with_the_file_named(folder, damage, named):
    damage(folder)
    with pytest.raises(BundleError, match=named):
        check_manifest(folder)


def test_a_truncated_tensor_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BundleError, match="model.safetensors"):
        load_tensors(path)
