import logging
import resource
import signal

import pytest
import torch

from recbole_dppmg.errors import StorageError
from recbole_dppmg.trainer.checkpoint import Checkpoints, Resumable
from recbole_dppmg.trainer.tracking import Tracker


def learn(folder, until, stop=None, seed=3):
    """A small training with everything that a checkpoint holds; `stop` ends it as a kill would."""
    torch.manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    generator, tracker, seen = torch.Generator().manual_seed(1), Tracker(), []
    parts = {"optimizer": optimizer, "warmup": warmup, "draws": generator}
    resumable = Resumable(Checkpoints(folder, 0).of("learn"), tracker, [weight], parts, lambda: {"seen": list(seen)})
    start, extra = resumable.resume()
    seen += extra.get("seen", [])
    for step in range(start, until):
        loss = (weight @ torch.randn(4, generator=generator)).pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        seen.append(step)
        tracker.log({"loss": loss}, step)
        if step == stop:
            break
        resumable.after(step + 1, last=step + 1 == until)
    return weight.detach(), tracker.history["loss"], seen


@pytest.mark.parametrize("stop", [0, 1, 7, 11])
def test_a_training_goes_on_as_if_it_had_never_stopped(tmp_path, stop):
    expected = learn(None, 12)
    learn(tmp_path, 12, stop=stop)
    weight, history, seen = learn(tmp_path, 12, seed=99 if stop else 3)  # what is restored, not what is drawn anew
    assert torch.equal(weight, expected[0]) and history == expected[1] and seen == list(range(12))
    again = learn(tmp_path, 12, seed=5)  # it is over: nothing is trained
    assert torch.equal(again[0], weight) and again[1] == history


def test_the_last_two_are_kept_and_phases_do_not_mix(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0)
    for step in (1, 2, 10):
        checkpoints.of("a").save(step, {"x": torch.tensor([float(step)])}, {})
    checkpoints.of("a.b").save(7, {}, {"found": {"ndcg@10": 0.5}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-000000002", "a-000000010", "a.b-000000007"]
    assert checkpoints.of("a").load().step == 10 and checkpoints.of("a").load().weights["x"] == 10
    assert checkpoints.of("a.b").load().training == {"found": {"ndcg@10": 0.5}}
    assert checkpoints.of("c").load() is None


@pytest.mark.parametrize("file", ["weights.safetensors", "training.pt", "manifest.json"])
@pytest.mark.parametrize("fault", ["cut", "flipped", "missing", "empty"])
def test_a_damaged_one_is_told_and_the_one_before_is_used(tmp_path, caplog, file, fault):
    phase = Checkpoints(tmp_path, 0).of("a")
    for step in (1, 2):
        phase.save(step, {"x": torch.full((50,), float(step))}, {"n": step})
    path = tmp_path / "a-000000002" / file
    content = path.read_bytes()
    middle = len(content) // 2
    if fault == "missing":
        path.unlink()
    elif fault == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        path.write_bytes(content[:middle] if fault == "cut" else b"")
    with caplog.at_level(logging.WARNING):
        found = phase.load()
    assert found.step == 1 and found.training == {"n": 1} and bool((found.weights["x"] == 1).all())
    assert "a-000000002 is damaged" in caplog.text
    phase.save(2, {"x": torch.full((50,), 5.0)}, {"n": 5})  # and it is written anew
    assert phase.load().training == {"n": 5}


def test_what_a_kill_leaves_while_it_is_written_is_not_a_checkpoint(tmp_path):
    phase = Checkpoints(tmp_path, 0).of("a")
    phase.save(1, {}, {"n": 1})
    (tmp_path / ".a-000000002").mkdir()
    (tmp_path / ".a-000000002" / "weights.safetensors").write_bytes(b"half")
    assert phase.load().step == 1
    phase.save(2, {}, {"n": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-000000001", "a-000000002"]


@pytest.mark.parametrize("part", ["weights", "training"])
def test_a_full_disk_is_one_error_and_the_last_good_one_is_left(tmp_path, part):
    phase = Checkpoints(tmp_path, 0).of("a")
    phase.save(1, {"x": torch.zeros(4)}, {"n": 1})
    large = torch.zeros(100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"a-000000002: the checkpoint cannot be written .*--resume"):
            phase.save(2, {"x": large} if part == "weights" else {}, {"x": large} if part == "training" else {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert phase.load().step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a-000000001"]


def test_nothing_is_unpickled(tmp_path):
    from pathlib import Path

    from recbole_dppmg.artifacts import write_manifest

    class Bomb:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "sign", "executed"))

    phase = Checkpoints(tmp_path / "state", 0).of("a")
    phase.save(1, {}, {"n": 1})
    phase.save(2, {}, {"n": 2})
    folder = tmp_path / "state" / "a-000000002"
    torch.save({"n": Bomb()}, folder / "training.pt")
    write_manifest(folder, ("torch",))
    assert phase.load().step == 1
    assert not (tmp_path / "sign").exists()


def test_without_a_folder_nothing_is_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phase = Checkpoints().of("a")
    assert not phase.due() and phase.load() is None
    phase.save(1, {"x": torch.zeros(1)}, {})
    assert not list(tmp_path.iterdir())
