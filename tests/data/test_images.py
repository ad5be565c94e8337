from pathlib import Path

import pytest
import torch
from PIL import Image

from recbole_dppmg.data import images
from recbole_dppmg.data.images import load_batch, locate_images, open_image
from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.settings import ContentSettings
from recbole_dppmg.types import Item


def save(path, color="red", size=(8, 6), mode="RGB", **options):
    Image.new(mode, size, color).save(path, **options)
    return path


def test_values_and_layout(tmp_path):
    batch = load_batch([save(tmp_path / "a.png", (255, 0, 0)), save(tmp_path / "b.jpg", (0, 255, 0), quality=100)], 16)
    assert batch.shape == (2, 3, 16, 16)
    assert torch.allclose(batch[0].mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    assert batch[1, 1].mean() > 0.95


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_other_modes_become_rgb(tmp_path, mode):
    assert open_image(save(tmp_path / "a.png", 0, mode=mode)).mode == "RGB"


def test_cmyk_jpeg(tmp_path):
    assert open_image(save(tmp_path / "a.jpg", 0, mode="CMYK")).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"not an image", b"GIF89a" + b"\0" * 40])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match="broken.jpg"):
        open_image(path)


def test_a_truncated_file_is_named(tmp_path):
    path = save(tmp_path / "cut.png", size=(64, 64))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="cut.png"):
        open_image(path)


def test_the_pixel_cap_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 40)
    with pytest.raises(DataError, match="8 x 6"):
        open_image(save(tmp_path / "big.png"))


def test_a_folder_is_matched_by_item_id(tmp_path):
    save(tmp_path / "1.jpg")
    items = [Item("1", "a", "a"), Item("2", "b", "b")]
    found = locate_images(items, tmp_path, ContentSettings(image_dir=str(tmp_path)))
    assert [item.image for item in found] == [tmp_path / "1.jpg", None]


def test_an_image_column_is_relative_to_the_dataset_and_stays_inside(tmp_path):
    (tmp_path / "data").mkdir()
    save(tmp_path / "data" / "1.png")
    save(tmp_path / "outside.png")
    (found,) = locate_images([Item("1", "a", "a", image=Path("1.png"))], tmp_path / "data", ContentSettings())
    assert found.image.name == "1.png"
    with pytest.raises(DataError, match="'2'.*outside"):
        locate_images([Item("2", "b", "b", image=Path("../outside.png"))], tmp_path / "data", ContentSettings())


def test_missing_places_are_named(tmp_path):
    with pytest.raises(ConfigError, match="image_dir"):
        locate_images([], tmp_path, ContentSettings(image_dir=str(tmp_path / "none")))
    with pytest.raises(DataError, match="'1'"):
        locate_images([Item("1", "a", "a", image=Path("gone.png"))], tmp_path, ContentSettings())
