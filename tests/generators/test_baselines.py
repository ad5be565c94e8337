from types import SimpleNamespace

import torch
from PIL import Image

from recbole_dppmg.generators.base import Catalogue, build_head
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import ImageRequest, Item, TextRequest

CODEBOOKS = {m: torch.eye(3).repeat(2, 1, 1) * torch.tensor([1.0, 0.3]).view(2, 1, 1) for m in ("text", "image")}


def test_template_tells_the_metadata_whoever_reads():
    head = build_head("text", "template", CODEBOOKS, Settings(), 0)
    item = Item("1", "Up", "", ("Animation", "Drama"), 2009)
    first, second = head.generate([TextRequest(item, {"text": (0, 1)}), TextRequest(item, {"text": (2, 2)})])
    assert first.text == second.text == "Up, from 2009, is in Animation and Drama."
    assert head.parameters() == []


def test_nearest_shows_the_image_closest_to_the_taste(tmp_path):
    items = [Item("", "", "")]
    for n, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
        items.append(Item(str(n), colour, "", image=tmp_path / f"{colour}.png"))
    items.append(Item("4", "none", ""))
    vectors = torch.cat([torch.zeros(1, 3), torch.eye(3), torch.ones(1, 3)])
    catalogue = Catalogue(SimpleNamespace(item_preference={"image": vectors}), items, {})
    head = build_head("image", "nearest", CODEBOOKS, Settings(), 0, catalogue)
    tastes = [{"image": (0, 1)}, {"image": (2, 2)}, {"text": (0, 0)}, None]
    results = head.generate([ImageRequest(items[2], tokens) for tokens in tastes])
    assert [r.image and r.image.getpixel((0, 0)) for r in results] == [(255, 0, 0), (0, 0, 255), None, None]
    assert all(r.error for r in results[2:])
    items[1].image.write_bytes(b"damaged")
    assert "red.png" in head.generate([ImageRequest(items[2], tastes[0])])[0].error


def test_nothing_to_save_and_nothing_to_load(tmp_path):
    head = build_head("text", "template", CODEBOOKS, Settings(), 0)
    head.save(tmp_path)
    head.load(tmp_path)
