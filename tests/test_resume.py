import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_dppmg import runs
from recbole_dppmg.errors import StorageError
from recbole_dppmg.runs import open_run

KILLS = (
    "beside write",
    "preference",
    "preference write",
    "text",
    "text write",
    "image",
    "reward",
    "reward write",
    "cards",
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The folders of a run that was left alone and of one that was killed in every phase, and how attempts ended."""
    folder, seed = tmp_path_factory.mktemp("resume"), random.randrange(10**6)
    command = [sys.executable, str(Path(__file__).with_name("kill_and_resume.py")), str(folder), str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    texts = [path.read_text() for path in folder.glob("*/output.txt")]
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    codes = json.loads(done.stdout.splitlines()[-1])["codes"]
    print(f"seed {seed}: {codes}")
    assert codes["whole"] == codes["last"] == 0, "\n".join(text[-3000:] for text in texts)
    found = {name: list((folder / name / "outputs").glob("tiny-DPPMG-*")) for name in ("whole", "killed")}
    return codes, found


def test_every_kill_hit_and_one_folder_is_left(outcome):
    codes, found = outcome
    assert {name: codes[name] for name in KILLS} == dict.fromkeys(KILLS, -9)
    assert codes["any moment"] in (-9, 0)
    if codes["any moment"] == -9:
        assert [len(folders) for folders in found.values()] == [1, 1]
    for folders in found.values():
        assert not (folders[0] / "state").exists()
        assert (folders[0].parent / "latest").resolve() in [folder.resolve() for folder in folders]


def test_the_bundle_is_bitwise_the_same(outcome):
    (whole, *_), (killed, *_) = outcome[1].values()
    files = sorted(path.relative_to(whole) for path in (whole / "bundle").rglob("*") if path.is_file())
    assert {"model.safetensors", "quantizer.safetensors", "joint.safetensors", "tokens.safetensors",
            "adapter_model.safetensors"} <= {path.name for path in files}  # fmt: skip
    for path in files:
        one, other = (whole / path).read_bytes(), (killed / path).read_bytes()
        if path.name == "README.md":  # it names the run
            one, other = one.replace(whole.name.encode(), b""), other.replace(killed.name.encode(), b"")
        assert one == other or path.name == "manifest.json", path


def test_cards_and_numbers_are_the_same(outcome):
    (whole, *_), (killed, *_) = outcome[1].values()
    assert (whole / "cards.jsonl").read_text() == (killed / "cards.jsonl").read_text()
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed))
    assert one.keys() == other.keys()
    assert {n: v for n, v in one.items() if v != other[n] and not n.startswith("time.")} == {}


def test_only_an_unfinished_run_of_the_same_keys_is_gone_on_with(tmp_path):
    def run(parameters, fail=False, resume=True, inside=None):
        with open_run(tmp_path, "x", parameters, resume=resume) as found:
            if inside:
                inside()
            if fail:
                raise KeyboardInterrupt
        return found.folder

    def failed(parameters):
        before = set(tmp_path.glob("x-*"))
        with pytest.raises(KeyboardInterrupt):
            run(parameters, fail=True, resume=False)
        (folder,) = set(tmp_path.glob("x-*")) - before
        return folder

    first, other = failed({"seed": 1}), failed({"seed": 2})
    assert run({"seed": 3}) not in (first, other)
    assert run({"seed": 1}) == first
    assert run({"seed": 1}) != first  # it is whole now
    running = []
    assert run({"seed": 2}, inside=lambda: running.append(run({"seed": 2}))) == other
    assert running[0] != other  # while it was running


def test_a_full_disk_ends_a_run_with_one_error(tmp_path):
    said = r"No space left on device.*--resume"
    with pytest.raises(StorageError, match=said), open_run(tmp_path, "x", {}), open("/dev/full", "w") as file:
        file.write("x")
    assert [path.name for path in tmp_path.glob("x-*/*") if path.name == runs.STATE] == ["state"]
