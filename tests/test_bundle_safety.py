"""Bundles that were damaged on the way, and bundles that were made to harm."""

import json
import pickle
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from recbole_dppmg.artifacts import load_tensors, save_tensors, write_manifest
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.bundle_files import read_config, read_joint, read_space
from recbole_dppmg.errors import BundleError
from recbole_dppmg.hub import push_to_hub
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.model.joint_space import JointSpace
from recbole_dppmg.settings import Settings

FILES = ["README.md", "config.json", "glossary.json", "images/2.png", "items.parquet", "joint.safetensors",
         "manifest.json", "model.safetensors", "quantizer.safetensors", "users.parquet"]  # fmt: skip
LIGHT = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def original(trained, tmp_path_factory):
    """A bundle with an image and a joint space."""
    from dataclasses import replace

    data, trainer = trained
    folder = tmp_path_factory.mktemp("safety")
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    space, items = trainer.model.space(), list(data.dataset.items)
    items[2] = replace(items[2], image=folder / "red.png")
    Bundle(
        settings=Settings(), seed=7, space=space, items=items,
        user_ids=[str(token) for token in data.dataset.field2id_token["user_id"]],
        recent=[[1, 2]] * data.dataset.user_num, glossary=build_glossary(space, items), heads={},
        joint=JointSpace(12, 12),
    ).save_pretrained(folder / "bundle", "# A card\n")  # fmt: skip
    found = sorted(p.relative_to(folder / "bundle").as_posix() for p in (folder / "bundle").rglob("*") if p.is_file())
    assert found == FILES
    return folder / "bundle"


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "bundle")


damages = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0)),
    st.tuples(st.just("append"), st.just(0.0), st.integers(0, 255)),
    st.tuples(st.just("missing"), st.just(0.0), st.just(0)),
    st.tuples(st.just("other"), st.just(0.0), st.integers(0, len(FILES) - 1)),
)


def damage(folder: Path, name: str, how: tuple) -> bool:
    """Damage a file; False if it is as it was."""
    kind, place, value = how
    path = folder / name
    before = path.read_bytes()
    if kind == "missing":
        path.unlink()
        return True
    after = {
        "flip": lambda: (
            before[: int(place * len(before))]
            + bytes([before[int(place * len(before))] ^ value])
            + before[int(place * len(before)) + 1 :]
        ),
        "cut": lambda: before[: int(place * len(before))],
        "append": lambda: before + bytes([value]),
        "other": lambda: (folder / FILES[value]).read_bytes(),
    }[kind]()
    path.write_bytes(after)
    return after != before


@LIGHT
@given(name=st.sampled_from([name for name in FILES if name != "manifest.json"]), how=damages)
def test_damage_is_refused_and_the_file_named(original, tmp_path_factory, name, how):
    folder = shutil.copytree(original, tmp_path_factory.mktemp("damaged") / "bundle")
    if damage(folder, name, how):
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            Bundle.from_pretrained(folder)
    shutil.rmtree(folder)


@LIGHT
@given(name=st.sampled_from(FILES), how=damages)
def test_damage_that_the_manifest_agrees_with_is_refused_or_harmless(original, tmp_path_factory, name, how):
    folder = shutil.copytree(original, tmp_path_factory.mktemp("forged") / "bundle")
    damage(folder, name, how)
    if name != "manifest.json":
        write_manifest(folder)
    try:
        bundle = Bundle.from_pretrained(folder)
    except BundleError as error:
        assert str(folder) in str(error)
    else:
        users = torch.arange(1, len(bundle.user_ids))
        items, _ = bundle.space.recommend(users, 5)
        assert int(items.min()) > 0 and int(items.max()) < len(bundle.items)
        assert bundle.tokens(bundle.user_ids[3]) and bundle.space.fold_in([[1, 2, 3]]).fused.isfinite().all()
    shutil.rmtree(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "quantizer.safetensors", "joint.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "shorter", "wider", "flat", "of another type", "not finite"])
def test_every_tensor_is_checked(copy, file, fault):
    whole, space = load_tensors(copy / file), read_space(copy)
    for name, tensor in whole.items():
        if name in ("recency", "log_scale") and fault in ("flat", "shorter", "of another type", "wider"):
            continue
        if fault == "not finite" and not tensor.is_floating_point():
            continue
        if fault == "wider" and name.startswith("projection") and name.endswith(".weight"):
            continue  # as wide as the encoder's features, which only a joint space tells
        if fault == "of another type" and file.startswith("joint"):
            continue  # taken over as float32
        changed = {
            "missing": lambda: None,
            "shorter": lambda t=tensor: t[:-1],
            "wider": lambda t=tensor: torch.cat([t, t[..., :1]], -1),
            "flat": lambda t=tensor: t.flatten() if t.dim() > 1 else t[None],
            "of another type": lambda t=tensor: t.to(torch.float64 if t.is_floating_point() else torch.int16),
            "not finite": lambda t=tensor: torch.full_like(t, torch.nan),
        }[fault]()
        rest = {other: t for other, t in whole.items() if other != name}
        save_tensors(copy / file, rest if changed is None else rest | {name: changed})
        with pytest.raises(BundleError, match=file.replace(".", r"\.")):
            print(name)
            read_joint(copy / file, space) if file.startswith("joint") else read_space(copy)


@pytest.mark.parametrize("name", ["history.items", "history.offsets", "user_codes.text", "history.weights", "weights"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_values_out_of_range_are_refused(copy, name, value):
    tensors = load_tensors(copy / "model.safetensors")
    if value > 0 and name == "weights":
        return  # large weights are odd, not wrong
    tensors[name].view(-1)[1] = value
    save_tensors(copy / "model.safetensors", tensors)
    write_manifest(copy)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        Bundle.from_pretrained(copy)


class Bomb:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


@pytest.mark.parametrize("name", [*FILES, "heads/text/pytorch_model.bin", "images/evil.pkl", "evil.py", ".hidden.pt"])
def test_planted_pickles_are_never_loaded(copy, tmp_path, name):
    sign = tmp_path / "sign"
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(pickle.dumps(Bomb(sign)))
    if name != "manifest.json":
        write_manifest(copy)
    if name in ("README.md", "images/2.png"):
        Bundle.from_pretrained(copy)  # shown or opened as an image later, as what they are not
    else:
        with pytest.raises(BundleError, match=Path(name).name.replace(".", r"\.")):
            Bundle.from_pretrained(copy)
    assert not sign.exists()
    pickle.loads(pickle.dumps(Bomb(sign)))
    assert sign.exists()  # it would have been


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": {"text": "os:system"}}, "os:system"),
        ({"heads": {"text": "diffusion"}}, "diffusion"),
        ({"heads": {"sound": "causal_lm"}}, "sound"),
        ({"heads": []}, "heads"),
        ({"seed": "7"}, "seed"),
        ({"settings": {"tau": -1}}, "tau"),
        ({"settings": {"of_the_future": 1}}, "of_the_future"),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused(copy, change, said):
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    write_manifest(copy)
    with pytest.raises(BundleError, match=rf"config\.json.*{said}"):
        Bundle.from_pretrained(copy)


def test_a_bundle_that_would_send_a_secret_away_must_be_trusted_here(copy, monkeypatch):
    monkeypatch.delenv("RECBOLE_DPPMG_HEADS", raising=False)
    config = json.loads((copy / "config.json").read_text())
    config["heads"] = {"text": "openai"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="'openai'.*RECBOLE_DPPMG_HEADS"):
        read_config(copy / "config.json")
    monkeypatch.setenv("RECBOLE_DPPMG_HEADS", "openai")
    assert read_config(copy / "config.json")[2] == {"text": "openai"}


def test_a_class_of_yours_must_be_trusted_here(copy, monkeypatch):
    monkeypatch.delenv("RECBOLE_DPPMG_HEADS", raising=False)
    config = json.loads((copy / "config.json").read_text())
    config["heads"] = {"text": "serving_heads:SayHead"}
    (copy / "config.json").write_text(json.dumps(config))
    write_manifest(copy)
    with pytest.raises(BundleError, match="RECBOLE_DPPMG_HEADS"):
        Bundle.from_pretrained(copy)
    monkeypatch.setenv("RECBOLE_DPPMG_HEADS", "my.heads:One, serving_heads:SayHead")
    assert list(Bundle.from_pretrained(copy).heads) == ["text"]


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(copy, version):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": version}))
    with pytest.raises(BundleError, match=r"manifest\.json: format"):
        Bundle.from_pretrained(copy)


@pytest.mark.parametrize(
    ("file", "column", "value"),
    [
        ("items.parquet", "row", 7),
        ("items.parquet", "title", None),
        ("items.parquet", "id", "4"),
        ("items.parquet", "image", "images/../../secret.png"),
        ("items.parquet", "image", "/etc/passwd"),
        ("users.parquet", "recent", [10**6]),
        ("users.parquet", "recent", [0]),
        ("users.parquet", "id", None),
    ],
)
def test_tables_are_checked(copy, file, column, value):
    table = pq.read_table(copy / file)
    rows = table.to_pydict()
    rows[column][3] = value
    pq.write_table(pa.table(rows, schema=table.schema), copy / file)
    write_manifest(copy)
    with pytest.raises(BundleError, match=file.replace(".", r"\.")):
        Bundle.from_pretrained(copy)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as refuses everybody."""

    def do_POST(self):
        self.send_response(401)
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


def test_only_a_whole_bundle_is_pushed(copy, monkeypatch):
    from huggingface_hub import HfApi

    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **more: calls.append((repo, more["private"])))

    def upload_folder(self, repo_id, folder_path, **_):
        calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir() if p.is_file())))
        return type("Done", (), {"commit_url": f"https://huggingface.co/{repo_id}/commit/1"})

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert push_to_hub(copy, "me/mine", private=True) == "https://huggingface.co/me/mine/commit/1"
    assert calls == [("me/mine", True), ("me/mine", sorted(name for name in FILES if "/" not in name))]
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        push_to_hub(copy, "me/mine")
    assert len(calls) == 2


def test_a_refusal_of_the_hub_is_one_error(copy, monkeypatch):
    from huggingface_hub import HfApi

    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address, original = f"http://127.0.0.1:{server.server_port}", HfApi.__init__
    monkeypatch.setattr(HfApi, "__init__", lambda self: original(self, endpoint=address, token="hf_x"))
    try:
        with pytest.raises(BundleError, match=r"not uploaded to me/mine .*401"):
            push_to_hub(copy, "me/mine")
    finally:
        server.shutdown()
