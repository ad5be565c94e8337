import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import recbole_scenarios as scenarios

ROOT = Path(__file__).parents[1]


def python(code, cwd=None):
    """Run code in a fresh interpreter that knows the package; returns what it printed."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every case of `recbole_scenarios` with the reason why it failed, or None."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, scenarios.__file__],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path_factory.mktemp("cases"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [f"{module} {repair}" for module, repair in scenarios.SCENARIOS] + ["ray"])
def test_each_repair_is_needed_and_enough(outcomes, name):
    assert outcomes[f"{name} with"] is None
    assert outcomes[f"{name} without"] is not None


def test_every_repair_has_a_scenario():
    from recbole_dppmg.compat import REPAIRS

    repairs = {(name, change) for name, changes in REPAIRS.items() for change in changes}
    assert len(repairs) == len(scenarios.SCENARIOS)
    assert {name for name, _ in repairs} == {f"recbole.{module}" for module, _ in scenarios.SCENARIOS}


@pytest.mark.parametrize("name", [*(scenario.__name__ for scenario in scenarios.OTHERS), "imported_before"])
def test_scenario(outcomes, name):
    assert outcomes[name] is None


def test_the_import_is_quick_and_takes_nothing_heavy():
    found = json.loads(
        python(
            "import json, sys, time; start = time.perf_counter(); import recbole_dppmg;"
            "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))"
        )
    )
    assert found[0] < 3
    assert not {"ray", "torch", "recbole", "pandas", "transformers", "diffusers", "mlflow"} & set(found[1])


def test_a_second_install_does_nothing():
    from recbole_dppmg import compat

    before = list(sys.meta_path)
    compat.install()
    assert sys.meta_path == before
