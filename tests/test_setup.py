"""What `make demo` and `make test` say where they cannot work; nothing is installed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("setup.cfg", "pyproject.toml", "constraints.txt", "Makefile", "scripts/venv.sh")


@pytest.fixture
def clone(tmp_path):
    """The files that set-up needs, and a folder of programs that comes first on the path."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def program(clone, name, text):
    path = clone / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def make(clone, *arguments, **variables):
    env = os.environ | {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}"} | variables
    return subprocess.run(["make", *arguments], cwd=clone, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_an_old_python(clone, target):
    old = program(clone, "old-python", '[ "$1" = --version ] && echo "Python 3.9.2"; exit 1')
    done = make(clone, target, PYTHON=old)
    assert done.returncode != 0
    assert done.stderr.startswith("error: Python 3.11 or newer is needed; found: Python 3.9.2.")
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_small_disk(clone, target):
    program(clone, "df", 'printf "Filesystem 1024-blocks Used Available Capacity Mounted on\\n/ 9 9 3145728 9%% /\\n"')
    done = make(clone, target, PYTHON=sys.executable)
    assert done.returncode != 0
    assert done.stderr.startswith("error: 6 GB of free disk are needed")
    assert "3 GB are free" in done.stderr
    assert not (clone / ".venv").exists()


def test_a_failed_installation_is_tried_again(clone):
    """pip is refused; what was begun is not taken for finished."""
    python = f"""case "$*" in
      "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
      *install*) echo tried >> tries; [ -f fixed ] ;;
      *) exec {sys.executable} "$@" ;;
    esac"""
    fake = program(clone, "fake-python", python)
    for tries in (1, 2):
        done = make(clone, "demo", PYTHON=fake)
        assert done.returncode != 0
        assert "the installation failed" in done.stderr
        assert len((clone / "tries").read_text().split()) == tries
    (clone / "fixed").touch()
    for _ in range(2):  # installs, then finds it done
        subprocess.run(["sh", "scripts/venv.sh", "example"], cwd=clone, check=True, env=os.environ | {"PYTHON": fake})
    assert len((clone / "tries").read_text().split()) == 3
    (clone / "constraints.txt").write_text("")
    subprocess.run(["sh", "scripts/venv.sh", "example"], cwd=clone, check=True, env=os.environ | {"PYTHON": fake})
    assert len((clone / "tries").read_text().split()) == 4
