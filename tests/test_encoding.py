import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import arguments, make_keys

from recbole_dppmg.cli import main


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("tiny"))


def test_coverage_is_told_and_written(keys, tmp_path, capsys):
    covers = shutil.copytree(keys["image_dir"], tmp_path / "covers")
    (covers / "3.png").write_bytes(b"")
    (covers / "4.png").rename(covers / "4.jpg")
    (covers / "5.png").unlink()
    root = shutil.copytree(keys["data_path"], tmp_path / "data", ignore=shutil.ignore_patterns("models", "covers"))
    path = Path(root) / "tiny" / "tiny.item"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(("3\t", "7\t"))) + "\n")
    given = arguments(keys, image_dir=covers, data_path=root, output_dir=tmp_path / "out")
    assert main(["encode", *given]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "tiny-coverage.json").read_text())
    assert report["items"] == 160
    assert report["text"] == {"items": 158, "width": 32} and report["image"] == {"items": 158, "width": 32}
    assert report["without_any"] == ["3"]
    assert [(row["item"], row["file"]) for row in report["left_out"]] == [("3", "3.png")]
    assert [(row["item"], row["reason"]) for row in report["converted"]] == [("4", "is PNG by its content")]
    assert "with text: 158, 32 features each" in said and "3.png (item 3): cannot be read" in said
    assert list(Path(keys["feature_cache"]).glob("image-*.safetensors"))
    assert main(["encode", "--model=BPR", *given]) == 2
