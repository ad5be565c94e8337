"""The verb on a whole run with tiny real generators, and what the judge and the training must not know."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import tiny_encoders
import torch
from PIL import Image
from tiny_runs import arguments, make_keys

from recbole_dppmg import pipeline
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.cli import main
from recbole_dppmg.pipeline import run_from_arguments

QUICK = {"epochs": 12, "text_inject_steps": 6, "image_inject_steps": 6, "reward_steps": 4, "report_users": 1,
         "report_cards": 1, "sampling_steps": 2}  # fmt: skip
JUDGED = [f"judge.{m}.top1.{c}" for m in ("text", "image") for c in ("own", "other", "none", "random", "history")]
PACKAGE = Path(__file__).parents[1] / "recbole_dppmg"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("tiny")) | QUICK


@pytest.fixture(scope="module")
def whole(keys, tmp_path_factory):
    """The folder of a run through all phases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        return run_from_arguments(arguments(keys)).parent.resolve()


def evaluated(folder, keys, *more):
    """Exit code of the verb; the judge reads images with an encoder of its own."""
    encoder = Path(keys["data_path"]) / "vit-of-the-judge"
    if not encoder.is_dir():
        tiny_encoders.save_image_encoder(encoder)
    given = ["--pairs=40", "--judge_epochs=8", "--threads=1", f"--judge_image_encoder={encoder}", *more]
    return main(["evaluate", f"--bundle={folder}", *given])


@pytest.fixture(scope="module")
def measured(whole, keys):
    assert evaluated(whole / "bundle", keys) == 0
    return json.loads((whole / "metrics.json").read_text())


def test_everything_is_measured_with_intervals(measured):
    wanted = [
        *JUDGED, "judge.text.top1.template", "judge.image.top1.nearest", "judge.text.gap.mean", "judge.image.gap.mean",
        "judge.text.rank.own", "consistency.cosine.before", "consistency.cosine.after", "consistency.recall@1.own",
        "judge.consistency.cosine.own", "personalization.text.before", "personalization.image.after",
        "fidelity.text.own", "fidelity.image.none", "diversity.image.own", "quality.text.names_item.own",
        "quality.text.usr.before", "quality.image.likeness.own", "gain.consistency.cosine", "judge.text.auc",
    ]  # fmt: skip
    for name in wanted:
        assert measured[f"{name}.low"] <= measured[name] <= measured[f"{name}.high"], name
    for modality in ("text", "image"):
        assert measured[f"judge.{modality}.top1.none"] == pytest.approx(0.05)
        assert 0 <= measured[f"judge.{modality}.gap.sign_p"] <= 1
    assert measured["evaluation.pairs"] == 40
    assert "ranking.test.ndcg@10" in measured  # what the run measured is still there
    gain = measured["consistency.cosine.after"] - measured["consistency.cosine.before"]
    assert measured["gain.consistency.cosine"] == pytest.approx(gain, abs=1e-6)


def test_cards_are_kept_for_anyone_to_look_at(whole, measured):
    cards = [json.loads(line) for line in (whole / "evaluation" / "cards.jsonl").read_text().splitlines()]
    counts = {}
    for card in cards:
        key = (card["condition"], "text" if "text" in card else "image")
        counts[key] = counts.get(key, 0) + 1
        if "image" in card:
            assert Image.open(whole / "evaluation" / card["image"]).size[0] >= 16
    conditions = ("own", "before", "none", "none_before", "random", "history")
    assert counts == {(c, m): 40 for m in ("text", "image") for c in conditions} | {
        ("template", "text"): 40,
        ("nearest", "image"): 40,
    }


def test_the_report_shows_it_once_however_often_it_is_asked(whole, keys, measured):
    assert evaluated(whole, keys) == 0  # the run's folder will do
    again = json.loads((whole / "metrics.json").read_text())
    assert {n: v for n, v in again.items() if "time" not in n} == {n: v for n, v in measured.items() if "time" not in n}
    report = (whole / "report.html").read_text()
    assert report.count("<h2>Generation, judged</h2>") == 1
    assert report.index("Generation, judged") < report.index("Codebook health")
    assert "<script" not in report and "http://" not in report


def test_another_seed_takes_other_cards_and_the_terminal_has_the_table(whole, keys, measured, capsys):
    assert evaluated(whole / "bundle", keys, "--seed=7") == 0
    other = json.loads((whole / "metrics.json").read_text())
    assert other["personalization.image.own"] != measured["personalization.image.own"]
    shown = capsys.readouterr().out
    for words in ("top-1 of 20", "swap gap", "after the reward phase, less before", "sign test", "seed"):
        assert words in shown
    assert max(map(len, shown.splitlines())) < 200


def test_bad_input_is_one_line(whole, keys, tmp_path, capsys):
    shutil.copytree(whole / "bundle", tmp_path / "moved")
    cases = {
        "config.yaml": ["evaluate", f"--bundle={tmp_path / 'moved'}"],
        "--pairs=0": ["evaluate", f"--bundle={whole / 'bundle'}", "--pairs=0"],
        "lower --pairs": ["evaluate", f"--bundle={whole / 'bundle'}", "--pairs=1000000", "--judge_epochs=1",
                          f"--judge_image_encoder={keys['image_encoder']}"],
    }  # fmt: skip
    for expected, argv in cases.items():
        assert main(argv) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and expected in error


def test_the_judge_is_not_the_reward(whole, keys):
    """Another seed, other parameters, other encoders, and more interactions than any training has seen."""
    from recbole_dppmg.config import DPPMGConfig
    from recbole_dppmg.evaluate import interactions, prepare, train_judge

    bundle = Bundle.from_pretrained(whole / "bundle")
    config = DPPMGConfig(config_file_list=[whole / "config.yaml"])
    data = prepare(config)
    encoder = str(Path(keys["data_path"]) / "vit-of-the-judge")
    tiny_encoders.save_image_encoder(Path(encoder))
    judge = train_judge(config, data, bundle, 3, "words", encoder)
    assert judge.seed != bundle.seed
    assert not set(judge.encoders.values()) & {bundle.settings.text_encoder, bundle.settings.image_encoder}
    own, other = bundle.space.tensors(), judge.space.tensors()
    for name in own.keys() & other.keys():
        if (
            name.startswith(("user_preference", "item_preference", "projection"))
            and own[name].shape == other[name].shape
        ):
            assert not torch.allclose(own[name], other[name], atol=1e-2), name
    train, valid = (len(interactions(part.dataset)) for part in (data.train, data.valid))
    assert bundle.space.history.sizes.sum() == train
    assert judge.space.history.sizes.sum() == train + valid
    names = {n for n in bundle.joint.tensors() if n.endswith("weight")}
    assert all(
        bundle.joint.tensors()[n].shape != judge.joint.tensors()[n].shape
        or not torch.allclose(bundle.joint.tensors()[n], judge.joint.tensors()[n], atol=1e-3)
        for n in names
    )


def test_no_training_reads_validation_or_test(keys, tmp_path, monkeypatch):
    """Without early stopping, a run whose validation and test parts are swapped trains the same, bit for bit."""

    def bundle(name, swapped):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        original = pipeline.prepare
        with monkeypatch.context() as patch:
            if swapped:
                patch.setattr(pipeline, "prepare", lambda config: _swap(original(config)))
            run = run_from_arguments(arguments(keys, eval_step=1000)).parent
        metrics = json.loads((run / "metrics.json").read_text())
        return {p.relative_to(run): p.read_bytes() for p in (run / "bundle").rglob("*.safetensors")}, metrics

    (first, measured), (second, swapped) = bundle("as-is", False), bundle("swapped", True)
    assert measured["ranking.test.ndcg@20"] == swapped["ranking.valid.ndcg@20"] != swapped["ranking.test.ndcg@20"]
    assert len(first) >= 5 and first.keys() == second.keys()
    for path in first:
        assert first[path] == second[path], path


def _swap(data):
    return data._replace(valid=data.test, test=data.valid)


def test_no_training_module_knows_the_judge():
    for folder in ("trainer", "model", "generators", "data"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
                whole = [getattr(node, "module", None) or "", *names]
                assert not any("judge" in name or (name.endswith("evaluate") and "dppmg" in name) for name in whole), (
                    path
                )
