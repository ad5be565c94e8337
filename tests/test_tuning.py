import sqlite3
from pathlib import Path

import optuna
import pytest
import yaml
from tiny_runs import arguments, make_keys

from recbole_dppmg import keys as all_keys
from recbole_dppmg.cli import main
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.errors import ConfigError
from recbole_dppmg.tuning import read_space, sample

LIGHT = {"text_encoder", "image_encoder", "text_generator", "image_generator"}
SHIPPED = sorted((all_keys.properties_dir() / "tuning").glob("*.yaml"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("tiny")) | {"epochs": 6, "stopping_step": 6, "quantizer_warmup": 1}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("learning_rate: {low: 1e-4, high: 1e-1, log: true}\nn_layers: [1, 2]\n")
    return tmp_path


def study(folder):
    (name,) = optuna.get_all_study_names(f"sqlite:///{folder / 'outputs/tuning.db'}")
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'outputs/tuning.db'}")


def test_a_study_is_gone_on_with_and_its_best_keys_train(tiny, here, capsys, monkeypatch):
    from recbole_dppmg.evaluation.ranking import RankingTask

    parts = []
    of = RankingTask.of
    monkeypatch.setattr(RankingTask, "of", lambda loader: (parts.append(loader), of(loader))[1])
    given = arguments({k: v for k, v in tiny.items() if k not in ("learning_rate", "n_layers")})
    assert main(["tune", *given, "--space=space.yaml", "--trials=2"]) == 0
    assert len(parts) == 2 and all(part is not None for part in parts)  # one for each trial: the validation part
    assert [trial.state.name for trial in study(here).trials] == ["COMPLETE"] * 2
    assert main(["tune", *given, "--space=space.yaml", "--trials=3"]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 trials done" in said
    found = study(here)
    assert len(found.trials) == 3 and len({trial.params["learning_rate"] for trial in found.trials}) == 3
    assert found.best_value == max(trial.value for trial in found.trials)
    assert all(len(trial.intermediate_values) == 6 for trial in found.trials)
    (path,) = Path("outputs").glob("*.yaml")
    assert yaml.safe_load(path.read_text()) == found.best_params
    assert f"{found.best_value:.4f}" in said and f"--config_files={path}" in said
    assert DPPMGConfig(argv=[*given, f"--config_files={path}"])["n_layers"] == found.best_params["n_layers"]
    assert main(["tune", *given, "--space=space.yaml", "--trials=3"]) == 0
    assert len(study(here).trials) == 3
    assert sorted(p.name for p in here.iterdir()) == ["outputs", "space.yaml"]
    with sqlite3.connect("outputs/tuning.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (3,)


def test_trials_that_fall_behind_are_ended_and_other_models_can_be_tuned(tiny, here):
    given = {k: tiny[k] for k in ("dataset", "data_path", "epochs", "train_batch_size", "stopping_step", "threads")}
    Path("space.yaml").write_text("learning_rate: [1e-9, 0.05]\nembedding_size: {low: 8, high: 16, step: 8}\n")
    assert main(["tune", *arguments(given, model="BPR"), "--space=space.yaml", "--trials=12"]) == 0
    trials = study(here).trials
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    assert all(len(t.intermediate_values) < 6 for t in trials if t.state.name == "PRUNED")
    assert study(here).best_params["learning_rate"] == 0.05


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tau: 0.3", "'tau': give a list, or low and high"),
        ("tau: {low: 1}", "'tau': give a list, or low and high"),
        ("tau: {low: 1, high: 0}", "'tau': low and high are to be numbers, low first"),
        ("tau: {low: 0, high: 1, log: true}", "'tau': log needs a low above 0"),
        ("tau: [[1]]", "'tau': give a list"),
        ("", "has no key to search"),
    ],
)
def test_a_space_that_is_none_is_told(here, text, said):
    Path("bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        read_space("bad.yaml")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials=0"], "--trials=0: must be 1 or more"),
        (["--space=none.yaml"], "none.yaml: no such file"),
        (["--learning_rate=0.1"], "--learning_rate: is in the space to search too"),
        (["--space=unknown.yaml"], "unknown key 'tua'; nearest: tau"),
    ],
)
def test_bad_input_is_one_line(tiny, here, capsys, more, said):
    Path("unknown.yaml").write_text("tua: [1, 2]\n")
    given = {k: v for k, v in tiny.items() if k not in ("learning_rate", "n_layers")}
    more = more if any(m.startswith("--space") for m in more) else [*more, "--space=space.yaml"]
    assert main(["tune", *arguments(given), *more]) == 2
    assert f"{said}" in capsys.readouterr().err


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_space_gives_values_that_a_run_takes(file, tiny):
    space = read_space(str(file))
    given = {k: tiny[k] for k in ("dataset", "data_path")}
    for seed in range(3):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        values = sample(trial, space)
        config = DPPMGConfig(config_dict=values, argv=arguments(given, model=file.stem))
        assert {key: config[key] for key in space} == values
