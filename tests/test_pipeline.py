import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image
from tiny_runs import arguments, make_keys

from recbole_dppmg.cli import main
from recbole_dppmg.config import DPPMGConfig, resolved
from recbole_dppmg.pipeline import run_from_arguments
from recbole_dppmg.runs import open_run, set_threads

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def statuses(folder, parent=None):
    """MLflow's runs by name, or those inside another, by its id."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("recbole-dppmg").experiment_id])
    return {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent}


def test_preference_alone(keys, here):
    report = run_from_arguments(arguments(keys, train_phases="[preference]", baselines="[Pop]"))
    folder = report.parent
    assert [path.name for path in here.iterdir()] == ["outputs"]  # RecBole's own folders are not there
    assert (here / "outputs" / "latest").resolve() == folder.resolve()
    expected = {"bundle", "cards.jsonl", "config.yaml", "log.txt", "metrics.json", "report.html", "tensorboard"}
    assert expected <= {path.name for path in folder.iterdir()}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["preference.loss.last"] < metrics["preference.loss.first"]
    for name in ("ranking.test.ndcg@10", "ranking.Pop.test.ndcg@10", "quantizer.text.utilization.0",
                 "quantizer.kept.ndcg@20", "time.preference_s"):  # fmt: skip
        assert name in metrics
    assert metrics["ranking.test.ndcg@10"] > metrics["ranking.Pop.test.ndcg@10"]
    run = statuses(here / "outputs")[folder.name]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ranking.test.ndcg_10"] == pytest.approx(metrics["ranking.test.ndcg@10"])
    inside = statuses(here / "outputs", run.info.run_id)
    assert set(inside) == {"Pop", "preference"} and inside["preference"].info.status == "FINISHED"
    assert inside["preference"].data.metrics["preference.loss"] > 0
    assert len(run.outputs.model_outputs) == 1  # the bundle
    log = (folder / "log.txt").read_text()
    assert "preference: done in" in log and "\x1b" not in log


@pytest.fixture(scope="module")
def whole(keys, tmp_path_factory):
    """The folder of a run through all phases with tiny real generators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        return run_from_arguments(arguments(keys, report_users=3, report_cards=2)).parent.resolve()


def test_losses_fall_and_rewards_rise_in_every_phase(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    for name in ("preference.loss", "injection.text.loss", "injection.image.loss"):
        assert metrics[f"{name}.last"] < metrics[f"{name}.first"], name
    for name in ("reward.text.total", "reward.image.total"):
        assert metrics[f"{name}.last"] > metrics[f"{name}.first"], name


def test_cards_have_everything(whole):
    cards = [json.loads(line) for line in (whole / "cards.jsonl").read_text().splitlines()]
    assert len(cards) == 6
    for card in cards:
        assert card["error"] is None and card["text"].startswith("Film ")
        assert Image.open(whole / card["image"]).size == (16, 16)
        assert {m: len(names) for m, names in card["tokens"].items()} == {"text": 4, "image": 4}
        assert set(card["scores"]) == {
            "personalization.text", "personalization.image", "consistency", "fidelity.text", "fidelity.image",
        }  # fmt: skip
    report = (whole / "report.html").read_text()
    assert all(str(escape(card["text"].split(".")[0])) in report for card in cards)
    assert "http://" not in report and "https://" not in report and "<script" not in report


def test_the_bundle_makes_the_same_cards(whole, tmp_path):
    from recbole_dppmg.bundle import Bundle
    from recbole_dppmg.evaluation.cards import choose_users, make_cards

    bundle = Bundle.from_pretrained(whole / "bundle")
    make_cards(bundle, choose_users(bundle, 3, bundle.seed), 2, tmp_path, bundle.seed)
    assert (tmp_path / "cards.jsonl").read_text() == (whole / "cards.jsonl").read_text()
    for image in (whole / "images").iterdir():
        assert (tmp_path / "images" / image.name).read_bytes() == image.read_bytes()


def test_the_same_seed_gives_the_same_numbers_and_images(keys, whole):
    again = run_from_arguments(arguments(keys, report_users=3, report_cards=2)).parent

    def timeless(folder):
        metrics = json.loads((folder / "metrics.json").read_text())
        return {name: value for name, value in metrics.items() if not name.startswith("time.")}

    assert timeless(again) == timeless(whole)
    assert (again / "cards.jsonl").read_text() == (whole / "cards.jsonl").read_text()
    for image in (whole / "images").iterdir():
        assert (again / "images" / image.name).read_bytes() == image.read_bytes()


def test_the_stored_configuration_is_that_of_the_run(keys, here):
    given = arguments(keys, train_phases="[preference]", topk="[5,10]", valid_metric="NDCG@5")
    config = DPPMGConfig(argv=given)
    with open_run(Path("outputs"), "x", resolved(config)):
        pass
    again = DPPMGConfig(config_file_list=[here / "outputs" / "latest" / "config.yaml"])
    assert again.settings == config.settings
    assert again.final_config_dict == config.final_config_dict


@pytest.mark.parametrize("model", ["BPR", "EASE"])
def test_any_model_of_recbole(keys, here, model):
    given = {key: keys[key] for key in ("dataset", "data_path", "epochs", "baselines")}
    report = run_from_arguments(arguments(given, model=model))
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert metrics[f"ranking.{model}.test.ndcg@10"] == metrics["ranking.test.ndcg@10"] > 0
    assert model in report.read_text()
    assert [path.name for path in here.iterdir()] == ["outputs"]
    assert list((report.parent / "checkpoints").glob(f"{model}-*.pth"))


def test_bad_input_is_one_line_and_leaves_no_link(keys, here, capsys, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"not an image")
    bare = tmp_path / "bare" / "tiny"
    shutil.copytree(Path(keys["data_path"]) / "tiny", bare)
    rows = (bare / "tiny.item").read_text().splitlines()
    (bare / "tiny.item").write_text("\n".join(row for row in rows if not row.startswith("17\t")))
    cases = {
        "0.png": {"image_dir": str(folder)},
        "item '17' has neither text nor image": {"image_dir": "", "data_path": str(bare.parent)},
        "no-such-model": {"text_encoder": "no-such-model", "feature_cache": str(tmp_path / "new")},
        "train_phases": {"train_phases": "[reward]"},
    }
    for expected, change in cases.items():
        code = main(arguments(keys | {"train_phases": "[preference]"}, **change))
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2, expected
        assert error.startswith("error: ") and expected in error
    assert not (here / "outputs" / "latest").exists()
    assert {run.info.status for run in statuses(here / "outputs").values()} == {"FAILED"}


def test_an_interrupted_run_is_marked_as_failed(keys, here):
    run_from_arguments(arguments(keys, train_phases="[preference]", epochs=1))
    before = (here / "outputs" / "latest").resolve()
    command = [sys.executable, str(ROOT / "run_dppmg.py"), *arguments(keys, epochs=100000, stopping_step=100000)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for line in process.stderr:
        if line.startswith("preference: up to"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (here / "outputs" / "latest").resolve() == before
    assert sorted(run.info.status for run in statuses(here / "outputs").values()) == ["FAILED", "FINISHED"]


def test_threads(monkeypatch):
    import torch

    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert set_threads(None) == torch.get_num_threads() == 3
        assert set_threads(2) == torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert set_threads(None) == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)


def test_logging_is_left_as_it_was(here):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with open_run(Path("outputs"), "x", {}):
        assert root.level == logging.INFO
    assert (root.level, list(root.handlers)) == before
