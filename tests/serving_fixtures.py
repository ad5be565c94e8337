"""A small real bundle, and servers on it."""

import os
from contextlib import ExitStack, contextmanager

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.serving.app import create_app
from recbole_dppmg.serving.engine import Engine
from recbole_dppmg.serving.options import ServeOptions
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import Item

KEY = "a-key-of-the-tests-0123"
os.environ["RECBOLE_DPPMG_HEADS"] = "serving_heads:SayHead,serving_heads:PaintHead"


@pytest.fixture(scope="session")
def bundle_folder(trained, tmp_path_factory):
    """A saved bundle of the tiny model; one item has a hostile title, one cannot be told of, one has no image."""
    from serving_heads import PaintHead, SayHead

    data, trainer = trained
    folder = tmp_path_factory.mktemp("serving")
    dataset, space = data.dataset, trainer.model.space()
    item_ids, user_ids = (list(map(str, dataset.field2id_token[f])) for f in (dataset.iid_field, dataset.uid_field))
    titles = {"7": "<script>alert('x')</script>", "8": "The Cursed Film"}
    items = [Item("[PAD]", "", "")]
    for row, item in enumerate(item_ids[1:], start=1):
        path = folder / f"{row}.png"
        Image.new("RGB", (48, 48), (row % 256, 90, 160)).save(path)
        kind = ("Horror", "Romance", "Western", "Musical")[int(item) % 4]
        title = titles.get(item, f"Film {item}")
        items.append(
            Item(item, title, f"{title}. {kind}.", (kind,), 1960 + int(item) % 40, None if item == "9" else path)
        )
    recent = [
        space.history.items[a:b].tolist()
        for a, b in zip(space.history.offsets, space.history.offsets[1:], strict=False)
    ]
    heads = {"text": SayHead, "image": PaintHead}
    bundle = Bundle(
        # features without their encoder: nothing generated can be scored
        settings=Settings(text_features="given.npy", image_features="given.npy"),
        seed=1,
        space=space,
        items=items,
        user_ids=user_ids,
        recent=recent,
        glossary=build_glossary(space, items),
        heads={m: head(None, space.codebooks, None, 1) for m, head in heads.items()},
    )
    bundle.save_pretrained(folder / "bundle", "# Tiny\n")
    return folder / "bundle"


@pytest.fixture(scope="session")
def engine(bundle_folder):
    return Engine(bundle_folder)


@pytest.fixture
def control(tmp_path, monkeypatch):
    """A folder whose files make the heads misbehave."""
    folder = tmp_path / "control"
    folder.mkdir()
    monkeypatch.setenv("SERVING_HEADS_DIR", str(folder))
    return folder


@contextmanager
def opened(engine, store, **options):
    """A client of a server in this process, and its service."""
    app, service = create_app(engine, ServeOptions(**{"store": store, "limit": 60} | options))
    with TestClient(app, raise_server_exceptions=False, base_url="http://127.0.0.1") as client:
        yield client, service


@pytest.fixture
def serving(engine, tmp_path):
    """Starts servers: `client, service = serving(queue=4)`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(opened(engine, tmp_path / "cards.sqlite3", **options))


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    """One server for a module's tests."""
    with opened(engine, tmp_path_factory.mktemp("server") / "cards.sqlite3") as found:
        yield found
