import logging

import pytest
import torch
from PIL import Image

from recbole_dppmg.data.encoders import image_encoder, text_encoder
from recbole_dppmg.data.features import item_features
from recbole_dppmg.settings import ContentSettings
from recbole_dppmg.types import Item


@pytest.fixture
def settings(tmp_path):
    return ContentSettings(feature_cache=str(tmp_path / "features"))


def items(*texts):
    return [Item(str(n), text, text) for n, text in enumerate(texts)]


def test_texts_of_like_meaning_are_near(settings):
    features, mask = item_features(
        items("a film about space travel", "an astronaut movie", "baking bread"), "text", settings
    )
    assert mask.all()
    assert features.shape == (3, 384)
    assert features[0] @ features[1] > features[0] @ features[2] + 0.2


def test_the_second_run_encodes_nothing_and_a_changed_text_only_itself(settings, caplog):
    caplog.set_level(logging.INFO)
    first, _ = item_features(items("one", "two"), "text", settings)
    second, _ = item_features(items("one", "two"), "text", settings)
    assert torch.equal(first, second)
    assert "0 to encode" in caplog.text
    third, _ = item_features(items("one", "three"), "text", settings)
    assert "1 read, 1 to encode" in caplog.text
    assert torch.equal(third[0], first[0])
    assert not torch.equal(third[1], first[1])


def test_items_without_the_modality_are_masked(settings):
    features, mask = item_features(items("", "two"), "text", settings)
    assert mask.tolist() == [False, True]
    assert features[0].abs().sum() == 0
    assert not item_features(items("one"), "image", settings)[1].any()


def test_a_damaged_store_is_encoded_again(settings, tmp_path):
    first, _ = item_features(items("one"), "text", settings)
    (path,) = (tmp_path / "features").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(item_features(items("one"), "text", settings)[0], first)


def test_image_features_follow_content_and_are_differentiable(settings, tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (128, 128), color).save(tmp_path / f"{name}.png")
    pair = [Item(n, n, n, image=tmp_path / f"{n}.png") for n in ("a", "b")]
    features, _ = item_features(pair, "image", settings)
    assert features.shape == (2, 1280)
    assert features[0] @ features[1] < 0.99
    pixels = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    image_encoder(settings.image_encoder)(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_order_and_batching_do_not_change_a_text(settings):
    encoder = text_encoder(settings.text_encoder)
    texts = [f"film number {n} " + "very " * (n % 7) + "good" for n in range(70)]
    assert torch.allclose(encoder.encode(texts)[[3, 64]], encoder.encode([texts[3], texts[64]]), atol=1e-5)
