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


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    path = save(tmp_path / "a.png", 0x8000, mode="I;16")
    assert open_image(path).getpixel((0, 0)) == (128, 128, 128)


def located(folder, *items, **keys):
    found, faults = locate_images([Item(*item) for item in items], folder, ContentSettings(**keys))
    return {item.id: item.image for item in found}, {fault.item: (fault.reason, fault.used) for fault in faults}


def test_a_folder_is_matched_by_item_id(tmp_path):
    save(tmp_path / "1.jpg")
    found, faults = located(tmp_path, ("1", "a", "a"), ("2", "b", "b"), image_dir=str(tmp_path))
    assert found == {"1": tmp_path / "1.jpg", "2": None} and not faults


def test_an_image_column_is_relative_to_the_dataset_or_to_image_dir(tmp_path):
    (tmp_path / "data").mkdir()
    path = save(tmp_path / "data" / "x.png")
    item = ("1", "a", "a", (), None, Path("x.png"))
    assert located(tmp_path / "data", item)[0] == {"1": path}
    assert located(tmp_path, item, image_dir=str(tmp_path / "data"))[0] == {"1": path}


def test_bad_images_are_named_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder / "good.png", size=(64, 64))
    save(folder / "cmyk.jpg", 0, mode="CMYK")
    save(folder / "deep.png", 0, mode="I;16")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    save(folder / "wrong.jpg", format="PNG")
    (folder / "empty.jpg").write_bytes(b"")
    for name, options in (("cut.jpg", {"quality": 90}), ("cut2.png", {})):
        whole = Image.effect_noise((64, 64), 50).convert("RGB")
        whole.save(folder / name, **options)
        (folder / name).write_bytes((folder / name).read_bytes()[:-400])
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("RGB", (7000, 7000)).save(folder / "large.png")
    save(folder / "other.gif")
    save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    names = [path.stem for path in folder.iterdir()]
    found, faults = located(tmp_path, *((n, n, n) for n in [*names, "none"]), image_dir=str(folder))
    used = {name for name, path in found.items() if path}
    assert used == {"good", "cmyk", "deep", "moving", "wrong"}
    assert used - {"good"} == {name for name, (_, use) in faults.items() if use}
    said = {"cmyk": "CMYK", "deep": "16 bits", "moving": "animated", "wrong": "is PNG", "empty": "it is empty",
            "cut": "cannot be read", "cut2": "cannot be read", "bomb": "cannot be read", "large": "7000 x 7000",
            "other": "cannot be read", "link": "leads out of", "dead": "no such file"}  # fmt: skip
    assert faults.keys() == said.keys()
    for name, words in said.items():
        assert words in faults[name][0], name


def test_paths_of_an_image_column_stay_inside(tmp_path):
    (tmp_path / "data").mkdir()
    save(tmp_path / "data" / "1.png")
    save(tmp_path / "outside.png")
    paths = {"1": "1.png", "2": "../outside.png", "3": str(tmp_path / "outside.png"), "4": "gone.png"}
    items = [(item, "", "", (), None, Path(path)) for item, path in paths.items()]
    found, faults = located(tmp_path / "data", *items)
    assert found == {"1": tmp_path / "data" / "1.png", "2": None, "3": None, "4": None}
    assert faults["2"][0].startswith("leads out") and faults["3"][0].startswith("leads out")
    assert faults["4"] == ("no such file", False)


def test_missing_places_and_folders_without_a_good_image_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="image_dir"):
        located(tmp_path, image_dir=str(tmp_path / "none"))
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 can be used; first 1.jpg: .*it is empty"):
        located(tmp_path, ("1", "a", "a"), image_dir=str(tmp_path))
