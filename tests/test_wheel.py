import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the package, built in a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("recbole_dppmg", "properties"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel installed outside the clone, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run([*command, "--target", str(target), str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(installed, folder, *command):
    env = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


def test_everything_of_the_package_is_in_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in ((ROOT / "recbole_dppmg", "recbole_dppmg"), (ROOT / "properties", "recbole_dppmg/properties")):
        for file in folder.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{place}/{file.relative_to(folder).as_posix()}" in inside, (
                    "see packages, package_data in setup.cfg"
                )
    assert not [name for name in inside if name.startswith(("tests/", "benchmarks/", "properties/"))]


def test_it_works_outside_the_clone(installed, tmp_path):
    done = run(installed, tmp_path, sys.executable, "-m", "recbole_dppmg.cli", "--help", "tau")
    assert done.returncode == 0, done.stderr
    assert "0.2 in properties/model/DPPMG.yaml" in done.stdout
    code = "from recbole_dppmg.config import DPPMGConfig, keys; c = DPPMGConfig();"
    code += "print(keys.properties_dir(), c['tau'], c['image_dir'])"
    done = run(installed, tmp_path, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "recbole_dppmg" / "properties"), "0.2", "drawn"]


def test_the_console_command(installed, tmp_path):
    command = installed / "bin" / "recbole-dppmg"
    done = run(installed, tmp_path, sys.executable, str(command), "--dataset=nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: dataset 'nowhere'")
