import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import arguments, make_keys

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.cli import main
from recbole_dppmg.errors import DataError
from recbole_dppmg.plan import make_plan
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import Item

ALL = ["preference", "injection", "reward"]


def planned(texts, images, n=25, padding=True, **settings):
    """The plan for items of which every one has a text, an image, both or neither."""
    items = [Item("[PAD]", "", "")] + [
        Item(str(row), "T" * texts, "T." * texts, image=Path("x.png") if images else None) for row in range(1, n)
    ]
    masks = {"text": texts or "text_features" in settings, "image": images or "image_features" in settings}
    features = {m: (torch.zeros(n, 2), torch.tensor([False] + [bool(there)] * (n - 1))) for m, there in masks.items()}
    return make_plan(Settings(**settings), items, features)


@pytest.mark.parametrize(
    ("texts", "images", "settings", "phases", "shown", "lost"),
    [
        (True, True, {}, ALL, ["text", "image"], ""),
        (True, False, {}, ALL[:2], ["text"],
         "no item has an image; left out: image tokens, generated images, the reward phase, which needs at least 20"),
        (False, True, {}, ALL[:2], ["image"],
         "no item has a text; left out: text tokens, explanations, the reward phase, which needs at least 20 items"),
        (False, False, {}, ALL[:1], [],
         "no item has a text or an image; left out: text tokens, image tokens, explanations, generated images, the"),
        (False, False, {"train_phases": ["preference"]}, ALL[:1], [],
         "no item has a text or an image; left out: text tokens, image tokens"),
        (True, False, {"modalities": ["text"], "train_phases": ALL[:2]}, ALL[:2], ["text"], ""),
        (True, True, {"image_features": "f.npy"}, ALL[:2], ["text", "image"],
         "left out: the reward phase, for image_features comes without the encoder that could read"),
        (False, False, {"text_features": "f.npy"}, ALL[:1], [],
         "no item has an image; left out: image tokens, explanations, generated images, the reward phase"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_told(texts, images, settings, phases, shown, lost):
    plan = planned(texts, images, **settings)
    assert (plan.phases, plan.shown) == (phases, shown)
    assert plan.lost.startswith(lost) and bool(plan.lost) == bool(lost) and "\n" not in plan.lost


def test_an_item_without_content_where_others_have_some_is_named():
    items = [Item("[PAD]", "", ""), Item("a", "T", "T."), Item("b", "", ""), Item("c", "", "")]
    features = {"text": (torch.zeros(4, 2), torch.tensor([False, True, False, False]))}
    features["image"] = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.bool))
    with pytest.raises(DataError, match="item 'b' has neither text nor image, nor have 1 others"):
        make_plan(Settings(), items, features)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    found = make_keys(tmp_path_factory.mktemp("tiny"))
    few = {"epochs": 8, "quantizer_warmup": 2, "text_inject_steps": 2, "image_inject_steps": 2, "report_users": 1}
    return found | few


@pytest.mark.parametrize("has", ["text", "image", "neither", "features only"])
def test_a_dataset_without_texts_or_images_goes_through_a_whole_run(keys, has, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(keys["data_path"]) / "tiny", tmp_path / "tiny")
    changes = {"data_path": str(tmp_path)}
    if has != "image":
        changes["image_dir"] = None
    if has != "text":
        (tmp_path / "tiny" / "tiny.item").unlink()
    if has == "features only":
        ids = [
            line.split("\t")[0] for line in (Path(keys["data_path"]) / "tiny" / "tiny.item").read_text().splitlines()
        ]
        np.save(tmp_path / "tiny" / "f.npy", np.random.default_rng(0).normal(size=(len(ids), 6)).astype("float32"))
        rows = "".join(f"{item},{row}\n" for row, item in enumerate(ids[1:]))
        (tmp_path / "tiny" / "rows.csv").write_text(f"item_id,row\n{rows}")
        changes |= {"text_features": "f.npy", "feature_index": "rows.csv"}
    assert main(arguments(keys, **changes)) == 0
    told = capsys.readouterr()
    assert len([line for line in told.err.splitlines() if "left out:" in line]) == 1
    folder = Path(told.out.strip().removeprefix("report: ")).parent
    assert all("left out:" in (folder / name).read_text() for name in ("report.html", "bundle/README.md"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["preference.loss.last"] < metrics["preference.loss.first"] and metrics["ranking.test.ndcg@10"] > 0
    bundle = Bundle.from_pretrained(folder / "bundle")
    tokens = {"text": ["text"], "image": ["image"], "neither": [], "features only": ["text"]}[has]
    assert list(bundle.space.modalities) == tokens and list(bundle.tokens("u3")) == tokens
    assert list(bundle.heads) == ([has] if has in ("text", "image") else [])
    for modality in bundle.heads:
        assert f"injection.{modality}.loss.last" in metrics
    cards = [json.loads(line) for line in (folder / "cards.jsonl").read_text().splitlines()]
    assert len(cards) == 4
    for card in cards:
        assert bool(card["text"]) == (has == "text") and bool(card["image"]) == (has == "image")
        assert card["error"] is None and sorted(card["tokens"]) == tokens
    assert main(["tokens", "--user=u3", f"--bundle={folder}/bundle"]) == 0
    if has != "features only":
        assert main(["generate", "--users=u3", "--cards=1", f"--bundle={folder}/bundle", "--threads=1"]) == 0
