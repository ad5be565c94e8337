import os
import subprocess
import sys
from pathlib import Path

import pytest
from preference_data import write_dataset

from recbole_dppmg import cli
from recbole_dppmg.errors import DataError

ROOT = Path(__file__).parents[1]


def told(capsys):
    """What was said on stderr, which is one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--dataset=nowhere"], "dataset 'nowhere': no nowhere.inter"),
        (["--dataset=empty", "--data_path=."], "dataset 'empty': no empty.inter"),
        (["--emebdding_size=8"], "unknown key 'emebdding_size'; nearest: embedding_size"),
        (["--epochs=few"], "key 'epochs': 'few'"),
        (["--model=DPMG"], "unknown model 'DPMG'; nearest: DPPMG"),
        (["--epochs", "3"], "'--epochs' is not of the form --key=value"),
        (["trian"], "unknown verb 'trian'"),
        (["epochs=3"], "unknown verb 'epochs=3'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert cli.main(argv) == 2
    assert f"error: {said}" in told(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # no run was begun


def test_bad_input_to_the_program(tmp_path):
    """As a user meets it: no traceback, nothing on stdout, exit code 2; from another folder than the clone."""
    write_dataset(tmp_path)
    command = [sys.executable, str(ROOT / "run_dppmg.py"), "--dataset=tiny", "--data_path=.", "--emebdding_size=8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == "error: unknown key 'emebdding_size'; nearest: embedding_size"


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], ["--dataset=x", "--help"]])
def test_help(argv, capsys):
    from recbole_dppmg.settings import Settings

    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: run_dppmg.py")
    assert all(f"  {name} " in out for name in Settings.model_fields)
    assert "train_batch_size" in out
    assert all(f"  {verb} " in out for verb in cli.VERBS)


@pytest.mark.parametrize("argv", [["--help", "tau"], ["--help=tau"], ["--help", "--tau=0.3"], ["help", "tau"]])
def test_help_on_a_key(argv, capsys):
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.startswith("tau: temperature of the softmax ranking loss\n  may be: a number > 0\n")


def test_help_on_an_unknown_key(capsys):
    assert cli.main(["--help", "quantiser_codes"]) == 2
    assert "nearest: quantizer_codes" in told(capsys)


def test_help_needs_nothing_heavy():
    code = "import sys; from recbole_dppmg.cli import main; main(['--help', 'tau']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-3)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_verbs_are_there(verb, capsys):
    from importlib import import_module

    module, function = cli.VERBS[verb][0].split(":")
    assert callable(getattr(import_module(module), function))


def test_verbs_get_their_arguments(monkeypatch, capsys):
    def function(argv):
        if argv == ["--help"]:
            return 5
        if argv == ["stop"]:
            raise KeyboardInterrupt
        raise DataError(f"{argv} of\n  two lines")

    monkeypatch.setattr(cli, "taste", function, raising=False)
    monkeypatch.setitem(cli.VERBS, "taste", ("recbole_dppmg.cli:taste", "for this test"))
    assert cli.main(["taste", "--help"]) == 5
    assert cli.main(["taste", "stop"]) == 130
    capsys.readouterr()
    assert cli.main(["taste", "a", "--b"]) == 2
    assert told(capsys) == "error: ['a', '--b'] of two lines"
    assert cli.main(["tsate"]) == 2
    assert "nearest: taste" in told(capsys)
