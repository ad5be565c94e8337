"""The generators in a process of their own, so that one that hangs or crashes can be stopped.

The process starts when first needed, loads each head at its first use, and runs at a lower priority than the
server, whose recommendations therefore stay quick. It ends by itself when the server is gone.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from recbole_dppmg.errors import DPPMGError

_NICER = 5
_START_S = 300.0  # to import torch and load the bundle


class GeneratorLost(DPPMGError):
    """The process hung or died; what it was asked is not done."""


class Generator:
    """A handle on the process; for one thread.

    Args:
        folder: the bundle's.
        threads: CPU threads of the process.
        limit_s: seconds that one call may take; a longer one counts as hung.
    """

    def __init__(self, folder: Path, threads: int, limit_s: float):
        self._arguments, self._limit_s = (folder, threads), limit_s
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def call(self, task: str, batch: Sequence[dict[str, Any]], beat: Callable[[], None]) -> list[dict[str, Any]]:
        """Make `text`, `image` or `scores` of a batch of card requests.

        Args:
            task: which.
            batch: requests as `CardOrder.request()`; for scores with the `text` and the PNG `image`.
            beat: called about every second of waiting.

        Returns:
            One per request: `{"value": ...}` (text, PNG bytes, or scores by name), or `{"error": why}`, fit for the
            public, with the traceback as `cause` where there is one.

        Raises:
            GeneratorLost: the process hung or died; it starts anew at the next call.
        """
        try:
            self._start(beat)
            self._pipe.send((task, list(batch)))
            return self._answer(task, self._limit_s, beat)
        except (OSError, EOFError) as error:
            self.stop()
            raise GeneratorLost(f"the generators' process died while it made {task}") from error
        except BaseException:
            self.stop()  # else its answer would be taken for the next call's
            raise

    def _start(self, beat: Callable[[], None]) -> None:
        if self._process is not None and self._process.is_alive():
            return
        self.stop()
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may deadlock
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer("ready", _START_S, beat)

    def _answer(self, task: str, limit_s: float, beat: Callable[[], None]) -> list[dict[str, Any]]:
        until = time.monotonic() + limit_s
        while not self._pipe.poll(max(0.0, min(1.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise GeneratorLost(f"{task} took longer than {limit_s:g} s")
            beat()
        return self._pipe.recv()

    def kill(self) -> None:
        """Interrupt a call from another thread: it then raises `GeneratorLost`."""
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self._pipe = None


def _serve(pipe: Connection, folder: Path, threads: int) -> None:
    """The process: answer calls until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when to stop
    os.nice(_NICER)
    import torch

    from recbole_dppmg.bundle import Bundle

    torch.set_num_threads(threads)
    bundle = Bundle.from_pretrained(folder)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send([])
        while True:
            task, batch = pipe.recv()
            pipe.send(_answer(bundle, task, batch))


def _answer(bundle, task: str, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return _scores(bundle, batch) if task == "scores" else _generate(bundle, task, batch)
    except Exception as error:  # whatever a head raises is that card's failure, not the server's
        if len(batch) > 1:  # find out whose it is
            return [answer for request in batch for answer in _answer(bundle, task, [request])]
        return [{"error": f"the {task} could not be made", "cause": "".join(traceback.format_exception(error))}]


def _generate(bundle, modality: str, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from recbole_dppmg.types import ImageRequest, TextRequest

    kind = TextRequest if modality == "text" else ImageRequest
    requests = [kind(bundle.items[r["item"]], _tokens(r), r["seed"]) for r in batch]
    answers = []
    for result in bundle.heads[modality].generate(requests):
        value = result.text if modality == "text" else _png(result.image)
        answers.append({"value": value} if value and not result.error else {"error": result.error or f"no {modality}"})
    return answers


def _scores(bundle, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from recbole_dppmg.evaluation.cards import score_cards

    images = [Image.open(io.BytesIO(r["image"])).convert("RGB") if r.get("image") else None for r in batch]
    pairs = [(_tokens(r), r["item"]) for r in batch]
    return [{"value": scores} for scores in score_cards(bundle, pairs, [r.get("text") or "" for r in batch], images)]


def _tokens(request: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {m: tuple(codes) for m, codes in request["tokens"].items()}


def _png(image: Image.Image | None) -> bytes | None:
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
