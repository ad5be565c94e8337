"""The bundle as an MLflow model, in a process and served by MLflow's own server."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pandas as pd
import pytest
from PIL import Image
from serving_fixtures import bundle_folder  # noqa: F401 - a fixture

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.trainer.tracking import Tracker

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def logged(bundle_folder, tmp_path_factory):  # noqa: F811
    """The store's address and the MLflow run that has logged the bundle, as a run does at its end."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tracker = Tracker(folder / "mlflow.db", "run-a", {})
        tracker.finish(bundle_folder.parent, {})
    store = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("recbole-dppmg").experiment_id])
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts"}  # nothing else is left here
    return store, run


@pytest.fixture(scope="module")
def model(logged):
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(logged[0])
    yield mlflow.pyfunc.load_model(f"runs:/{logged[1].info.run_id}/bundle")
    mlflow.set_tracking_uri(before)


def test_the_run_has_the_model(logged):
    from mlflow import MlflowClient

    store, run = logged
    (found,) = MlflowClient(store).search_logged_models([run.info.experiment_id])
    assert found.source_run_id == run.info.run_id and found.status.value == "READY" and found.name == "bundle"
    assert [output.model_id for output in run.outputs.model_outputs] == [found.model_id]


def test_users_and_histories_in_cards_out(model, bundle_folder):  # noqa: F811
    bundle = Bundle.from_pretrained(bundle_folder)
    rows = pd.DataFrame({"user": ["u4", None, None], "history": [None, ["3", "7", 11], []]})
    cards = model.predict(rows, params={"cards": 2, "seed": 5})
    assert [card["row"] for card in cards] == [0, 0, 1, 1, 2, 2]
    assert [card["user"] for card in cards] == ["u4", "u4"] + [None] * 4
    items, _ = bundle.space.recommend(bundle.space.history.offsets.new_tensor([bundle.row_of("u4")]), 2)
    assert [card["item"] for card in cards[:2]] == [bundle.items[row].id for row in items[0].tolist()]
    assert not {card["item"] for card in cards[2:4]} & {"3", "7", "11"}
    folded = bundle.space.fold_in([[bundle.item_rows[item] for item in ("3", "7", "11")]])
    assert cards[2]["tokens"]["text"] == [f"<text_{n}_{c}>" for n, c in enumerate(folded.codes["text"][0].tolist())]
    for card in cards:
        assert card["error"] is None and card["text"]
        assert Image.open(io.BytesIO(base64.b64decode(card["image"]))).format == "PNG"
    assert model.predict(rows, params={"cards": 2, "seed": 5}) == cards


@pytest.mark.parametrize(
    ("row", "params", "said"),
    [
        ({"user": "nobody"}, {}, "user 'nobody'"),
        ({"history": ["3", "no such"]}, {}, "row 0: item 'no such'"),
        ({"history": [["3"]]}, {}, "row 0: item"),
        ({"user": None, "history": None}, {}, "row 0: give either"),
        ({"user": "u4", "history": "3"}, {}, "row 0: give either"),
        ({"history": 3}, {}, "row 0: give either"),
        ({"user": "u4", "history": ["3"]}, {}, "row 0: give either"),
        ({"user": "u4"}, {"cards": 0}, "cards is 0; give 1 to 100"),
    ],
)
def test_what_cannot_be_answered_is_told(model, row, params, said):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=said) as caught:
        model.predict(pd.DataFrame([row]), params=params)
    assert caught.value.get_http_status_code() == 400


def test_mlflow_serves_it(logged, tmp_path):
    store, run = logged
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": store,
        "PYTHONPATH": paths,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"runs:/{run.info.run_id}/bundle"]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    with open(tmp_path / "log.txt", "w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90, trust_env=False) as client:
            until = time.monotonic() + 180
            while True:
                assert server.poll() is None and time.monotonic() < until, (tmp_path / "log.txt").read_text()[-3000:]
                try:
                    assert client.get("/ping").status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            asked = {"dataframe_records": [{"user": "u4"}, {"history": ["3", "7"]}], "params": {"cards": 1}}
            answer = client.post("/invocations", json=asked)
            assert answer.status_code == 200, answer.text
            cards = answer.json()["predictions"]
            assert [card["row"] for card in cards] == [0, 1] and all(card["text"] and card["image"] for card in cards)
            refused = client.post("/invocations", json={"dataframe_records": [{"user": "nobody"}]})
            assert refused.status_code == 400 and "user 'nobody'" in refused.json()["message"]
    finally:
        os.killpg(server.pid, 9)
        server.wait()
