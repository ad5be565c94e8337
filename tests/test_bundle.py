import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.commands import generate, tokens
from recbole_dppmg.errors import BundleError, ConfigError, DataError
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.settings import Settings


@pytest.fixture(scope="module")
def bundle(trained):
    data, trainer = trained
    space, items = trainer.model.space(), data.dataset.items
    return Bundle(
        settings=Settings(), seed=7, space=space, items=items,
        user_ids=[str(token) for token in data.dataset.field2id_token["user_id"]],
        recent=[space.history.take(torch.tensor([user])).items.tolist()[:3] for user in range(data.dataset.user_num)],
        glossary=build_glossary(space, items), heads={},
    )  # fmt: skip


@pytest.fixture
def folder(bundle, tmp_path):
    bundle.save_pretrained(tmp_path / "bundle", "# A model card\n")
    return tmp_path / "bundle"


def test_it_comes_back_as_it_was(bundle, folder):
    again = Bundle.from_pretrained(folder)
    assert again.settings == bundle.settings and again.seed == 7
    assert again.items == list(bundle.items)
    assert again.user_ids == bundle.user_ids and again.recent == bundle.recent
    assert again.glossary == bundle.glossary
    assert again.tokens("u3") == bundle.tokens("u3")
    users = torch.arange(1, 9)
    for one, other in zip(bundle.space.recommend(users, 5), again.space.recommend(users, 5), strict=True):
        assert torch.equal(one, other)
    assert (folder / "README.md").read_text() == "# A model card\n"


def test_a_user_who_is_not_there_is_named(bundle):
    with pytest.raises(DataError, match="user 'nobody'"):
        bundle.row_of("nobody")


def test_saving_replaces_the_whole_of_an_older_bundle(bundle, folder):
    (folder / "left-over.txt").write_text("x")
    bundle.save_pretrained(folder, "second")
    assert not (folder / "left-over.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    Bundle.from_pretrained(folder)


def test_images_travel_inside(bundle, tmp_path):
    from dataclasses import replace

    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    items = [*bundle.items[:2], replace(bundle.items[2], image=tmp_path / "red.png"), *bundle.items[3:]]
    replace(bundle, items=items).save_pretrained(tmp_path / "with", "")
    (tmp_path / "red.png").unlink()
    image = Bundle.from_pretrained(tmp_path / "with").items[2].image
    assert image.is_relative_to(tmp_path / "with") and Image.open(image).size == (8, 8)


@pytest.mark.parametrize("fault", ["changed", "missing", "added", "not json", "lacks a key", "image outside"])
def test_a_damaged_bundle_is_refused_by_file(folder, fault):
    from recbole_dppmg.artifacts import write_manifest

    expected = "config.json"
    if fault == "changed":
        (folder / "model.safetensors").write_bytes(b"x")
        expected = "model.safetensors"
    elif fault == "missing":
        (folder / "quantizer.safetensors").unlink()
        expected = "quantizer.safetensors"
    elif fault == "added":
        (folder / "evil.py").write_text("")
        expected = "evil.py"
    else:
        config = json.loads((folder / "config.json").read_text())
        if fault == "image outside":
            table = pq.read_table(folder / "items.parquet").to_pydict()
            table["image"][3] = "../secret.png"
            (folder.parent / "secret.png").write_bytes(b"x")
            pq.write_table(pa.table(table), folder / "items.parquet")
            expected = "secret.png"
        elif fault == "lacks a key":
            del config["settings"]
            (folder / "config.json").write_text(json.dumps(config))
            expected = "settings"
        else:
            (folder / "config.json").write_text("{")
            expected = str(folder)
        write_manifest(folder)  # whoever changed it knew the manifest
    with pytest.raises(BundleError, match=expected.replace(".", r"\.")):
        Bundle.from_pretrained(folder)


def test_tokens_are_told_with_words_and_items(folder, capsys):
    assert tokens(["--user=u3", f"--bundle={folder}"]) == 0
    printed = capsys.readouterr().out
    names = Bundle.from_pretrained(folder).tokens("u3")
    for level, code in enumerate(names["text"]):
        assert f"<text_{level}_{code}>" in printed
    assert "Film " in printed and "14 items" not in printed and "items in training" in printed


def test_cards_without_generators(folder, tmp_path, capsys):
    assert generate(["--users=u3,u8", f"--bundle={folder}", "--cards=3", f"--output={tmp_path / 'new'}"]) == 0
    cards = [json.loads(line) for line in (tmp_path / "new" / "cards.jsonl").read_text().splitlines()]
    assert [card["user"] for card in cards] == ["u3"] * 3 + ["u8"] * 3
    assert all(card["text"] == "" and card["image"] is None and card["error"] is None for card in cards)
    assert "report.html" in capsys.readouterr().out and (tmp_path / "new" / "report.html").is_file()
    with pytest.raises(ConfigError, match="already there"):
        generate(["--users=u3", f"--bundle={folder}", f"--output={tmp_path / 'new'}"])


@pytest.mark.parametrize("argv", [[], ["--user=u3", "--buldne=x"]])
def test_bad_arguments_are_one_line(argv):
    with pytest.raises(ConfigError, match=r"^tokens: .*see tokens --help"):
        tokens(argv)
