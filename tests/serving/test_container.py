"""The container's files: linted, and what they start is what the command line accepts."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.serving.main import options_from
from recbole_dppmg.serving.options import KEY_VARIABLE

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_is_clean():
    linter = shutil.which("hadolint") or Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout


def test_its_command_serves_behind_a_key(monkeypatch):
    command = json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])
    assert command[:2] == ["recbole-dppmg", "serve"]
    assert "recbole-dppmg = recbole_dppmg.cli:main" in (ROOT / "setup.cfg").read_text()
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        options_from(command[2:])
    monkeypatch.setenv(KEY_VARIABLE, "a-key-of-the-tests-0123")
    bundle, options = options_from(command[2:])
    assert (bundle, options.host, options.port) == ("/bundle", "0.0.0.0", 8000)


def test_what_it_copies_exists_and_is_sent():
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]
    assert copied and set(copied) == set(sent)
    assert all((ROOT / name).exists() for name in copied)


def test_compose_asks_for_a_key_and_mounts_the_bundle():
    server = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["server"]
    assert ":?" in server["environment"][KEY_VARIABLE]  # compose stops without it
    assert any(volume.endswith(":/bundle:ro") for volume in server["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
