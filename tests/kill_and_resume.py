"""Runs that are killed again and again and gone on with, beside one that is not: `kill_and_resume.py FOLDER SEED`.

Imports what is slow once and forks a process for each attempt, which is then killed by SIGKILL: at a step of a phase,
inside the writing of a checkpoint, or from outside after some time. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

KEYS = {
    "epochs": 7, "quantizer_warmup": 2, "text_inject_steps": 5, "image_inject_steps": 5, "reward_steps": 4,
    "reward_group": 2, "reward_cards": 1, "joint_epochs": 2, "report_users": 1, "report_cards": 1,
    "sampling_steps": 2, "baselines": "[LightGCN]", "checkpoint_seconds": 0, "text_inject_batch": 2,
    "image_inject_batch": 2,
}  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(name: str, step: int) -> Callable[[], None]:
    """Arrange a kill when a phase logs this step: after the step, before its checkpoint."""

    def arrange() -> None:
        from recbole_dppmg.trainer.tracking import Tracker

        log = Tracker.log

        def fatal(self, values, at):
            log(self, values, at)
            if at == step and any(key.startswith(name) for key in values):
                die()

        Tracker.log = fatal

    return arrange


def while_writing(phase: str, number: int, file: str) -> Callable[[], None]:
    """Arrange a kill in the middle of the phase's checkpoint of this number: when `file` is half written."""

    def arrange() -> None:
        from recbole_dppmg.trainer import checkpoint

        save, written = checkpoint.PhaseCheckpoints.save, []

        def fatal(self, step, weights, training):
            if self._phase == phase:
                written.append(step)
                if len(written) == number:
                    if file == "weights.safetensors":
                        checkpoint.save_tensors = lambda path, _: (Path(path).write_bytes(b"half"), die())
                    else:
                        checkpoint.write_manifest = lambda *_, **__: die()
            save(self, step, weights, training)

        checkpoint.PhaseCheckpoints.save = fatal

    return arrange


def in_cards() -> None:
    """Arrange a kill after the bundle, while cards are made."""
    from recbole_dppmg import pipeline

    pipeline.make_cards = lambda *_, **__: die()


def attempt(argv: list[str], folder: Path, arrange: Callable[[], None] | None = None, after: float = 0) -> int:
    """Run in a process of its own that stands in `folder`; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        if arrange:
            arrange()
        from recbole_dppmg.cli import main

        os._exit(main(argv))
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, seed: int) -> None:
    import diffusers  # noqa: F401 - so that no attempt has to
    import mlflow  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401
    from tiny_runs import arguments, make_keys

    import recbole_dppmg.evaluation.cards
    import recbole_dppmg.generators.causal_lm
    import recbole_dppmg.generators.diffusion
    import recbole_dppmg.pipeline  # noqa: F401

    argv = arguments(make_keys(folder) | KEYS)
    draw = random.Random(seed)
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    start = time.monotonic()
    codes = {"whole": attempt(argv, folder / "whole")}
    took = time.monotonic() - start
    attempts = {
        "beside write": while_writing("beside.LightGCN", 3, "weights.safetensors"),
        "preference": at_step("preference.loss", draw.randrange(6)),
        "preference write": while_writing("preference", 2, "weights.safetensors"),
        "text": at_step("injection.text", draw.randrange(5)),
        "text write": while_writing("injection.text", 1, "manifest.json"),
        "image": at_step("injection.image", draw.randrange(5)),
        "reward": at_step("reward.image.drift", draw.randrange(4)),
        "reward write": while_writing("reward", 1, "weights.safetensors"),
        "cards": in_cards,
    }
    resumed: list[str] = []
    for name, arrange in attempts.items():
        codes[name] = attempt(argv + resumed, folder / "killed", arrange)
        resumed = ["--resume"]
    codes["any moment"] = attempt(argv + resumed, folder / "killed", after=draw.uniform(0, took / 4))
    codes["last"] = attempt(argv + resumed, folder / "killed")
    print(json.dumps({"codes": codes, "seconds": took}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(Path(sys.argv[1]), int(sys.argv[2]))
