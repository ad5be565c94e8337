"""What README.md tells to type is typed: Python runs, YAML is a configuration, commands are understood."""

import argparse
import importlib.util
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_encoders
import yaml

from recbole_dppmg import cli
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.config import DPPMGConfig
from recbole_dppmg.model.glossary import build_glossary
from recbole_dppmg.settings import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`(run_dppmg\.py [a-z-][^`]*)`", TEXT)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
LINES += [f"python {line}" for line in INLINE]
RUN = {"tokens", "generate"}  # quick, so done in earnest
#: Arguments of verbs that take a run's keys beside their own.
OWN = {"encode": (), "tune": ("trials", "space")}


class Understood(Exception):
    """An argument parser has accepted its arguments."""


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A folder with the dataset `shop` as README.md lays it out, and with a bundle that knows its users."""
    root = tmp_path_factory.mktemp("readme")
    (layout,) = (block for kind, block in BLOCKS if kind == "text")
    cells = {"user_id": "u1", "item_id": "i1", "timestamp": "3", "title": "A lamp", "genres": "Light Home"}
    for line in layout.splitlines():
        path, *columns = line.split()
        if path.endswith("/"):
            (root / path).mkdir()
        elif columns:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            row = "\t".join(cells.get(column.split(":")[0], "words") for column in columns)
            (root / path).write_text("\t".join(columns) + f"\n{row}\n")
    data, trainer = trained
    space, users = trainer.model.space(), [str(token) for token in data.dataset.field2id_token["user_id"]]
    users[1:3] = ["196", "186"]
    items = [replace(item, image=None) for item in data.dataset.items]
    bundle = Bundle(Settings(), 1, space, items, users, [[1]] * len(users), build_glossary(space, items), heads={})
    bundle.save_pretrained(root / "outputs" / "latest" / "bundle", "")
    return root


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_every_block_says_what_it_is():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "text", "yaml"}
    assert len(LINES) > 20


def understood(argv, monkeypatch):
    """Arguments of `run_dppmg.py` are taken, as far as that needs no run."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments):
        parse(self, *arguments)
        raise Understood

    verb = argv[0] if argv and argv[0] in cli.VERBS else ""
    if verb in OWN or (not verb and "--help" not in argv):
        kept = [a for a in argv if a not in (verb, "--resume") and a[2:].partition("=")[0] not in OWN.get(verb, ())]
        assert DPPMGConfig(argv=kept).settings
    elif verb in RUN or not verb:
        assert cli.main(argv) == 0
    else:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(Understood):
            cli._dispatch(argv)


def mlflow_understands(arguments):
    from mlflow.cli import cli as group

    command = group
    while arguments and arguments[0] in getattr(command, "commands", ()):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    with command.make_context("mlflow", list(arguments)) as context:
        return context.params


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_understood(line, here, monkeypatch, capsys):
    for command in re.split(r" && ", line):
        words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]
        program, arguments = Path(words[0]).name, words[1:]
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif program == "mlflow":
            assert mlflow_understands(arguments)
        elif program == "tensorboard":
            assert importlib.util.find_spec("tensorboard") and arguments == ["--logdir=outputs"]
        elif program == "curl":
            asked = json.loads(arguments[arguments.index("-d") + 1])
            assert set(asked) == {"dataframe_records", "params"} and asked["dataframe_records"][0] == {"user": "196"}
        elif program == "pip":
            extras = re.search(r"\[(.*)\]", arguments[-1])[1].split(",")
            assert all(re.search(rf"^{extra} =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE) for extra in extras)
            assert (ROOT / arguments[arguments.index("-c") + 1]).is_file()
        elif arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1])
        else:
            assert program.startswith("python") and (ROOT / arguments[0]).is_file()
            understood(arguments[1:], monkeypatch)


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "yaml"])
def test_a_configuration_is_taken(block, here):
    (here / "given.yaml").write_text(block)
    config = DPPMGConfig(argv=["--config_files=given.yaml"])
    for key, value in yaml.safe_load(block).items():
        assert config[key] == value


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_python_runs(block, here, monkeypatch, capsys):
    """As it stands; only that RecBole reads its arguments, so that ml-100k is not trained for long."""
    quick = {"epochs": 1, "quantizer_warmup": 0, "quantizer_codes": 4, "modalities": "['text']", "state": "ERROR"}
    quick |= {"text_encoder": tiny_encoders.save_text_encoder(here / "bert"), "feature_cache": here / "features"}
    quick |= {"image_dir": here / "images", "gpu_id": "''"}
    monkeypatch.setattr("sys.argv", ["program", *(f"--{key}={value}" for key, value in quick.items())])
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    if "bundle" in names:
        liked, best = set(names["liked"]), set(names["items"][0].tolist())
        assert len(best) == 5 and not liked & best
        assert "text" in capsys.readouterr().out
    else:
        assert list((here / "saved").glob("DPPMG-*.safetensors"))
