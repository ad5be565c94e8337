"""The thread that makes queued cards, in micro-batches, and keeps account of the generators' health."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence

from recbole_dppmg.serving.generator import Generator, GeneratorLost
from recbole_dppmg.serving.queue import LEASE_S, JobQueue, Work
from recbole_dppmg.serving.store import CardStore, StoredCard
from recbole_dppmg.serving.telemetry import Metrics, tell

_IDLE_S = 0.25  # other servers of the store may have put work there


class Runner:
    """Takes work from the queue, has it made, and stores each part as soon as it is there.

    Attributes:
        trouble: per modality why its last attempt failed, or None.
        seconds_per_card: a running mean.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        queue: JobQueue,
        store: CardStore,
        generator: Generator,
        metrics: Metrics,
        batch: int,
    ):
        self._queue, self._store, self._generator = queue, store, generator
        self._metrics, self._batch = metrics, batch
        self.trouble: dict[str, str | None] = dict.fromkeys(modalities)
        self.seconds_per_card = 2.0
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._renewed, self._cut_off = 0.0, False
        self._thread = threading.Thread(target=self._run, name="cards", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    def wake(self) -> None:
        """There is new work."""
        self._wake.set()

    def finish_batch(self) -> None:
        """Take no more work than the batch at hand."""
        self._stopping.set()
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """Finish the batch at hand, if it takes no longer than this, and end the generators' process. The rest
        waits in the queue for another server, or for this one to start again."""
        self.finish_batch()
        if self._thread.is_alive():
            self._thread.join(seconds)
            self._cut_off = self._thread.is_alive()
            self._generator.kill()
            self._thread.join()
        self._generator.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if work := self._queue.take(self._batch):
                    self._make(work)
                    continue
            except sqlite3.Error as error:  # a full disk, say: the rest of the server goes on, and so must this
                tell(logging.ERROR, "store failed", error=str(error))
            self._wake.wait(_IDLE_S)
            self._wake.clear()

    def _make(self, work: list[Work]) -> None:
        begun = time.monotonic()
        errors: dict[str, str] = {}
        try:
            for modality in self.trouble:
                self._part(modality, [w for w in work if not getattr(self._known(w), modality)], errors)
        except GeneratorLost as error:
            if self._cut_off:  # by us, for lack of time: no fault of the cards
                self._queue.put_back([w.card for w in work], counted=False)
                return
            tell(logging.ERROR, "generator lost", error=str(error), cards=len(work))
            self.trouble[modality] = str(error)
            self._metrics.lost.inc()
            self._queue.put_back([w.card for w in work])
            return
        finally:
            for modality, trouble in self.trouble.items():
                self._metrics.degraded.labels(modality).set(trouble is not None)
        self._score([w for w in work if w.card not in errors])
        for w in work:
            self._queue.finish(w.card, errors.get(w.card))
            self._metrics.cards.labels("failed" if w.card in errors else "made").inc()
        self.seconds_per_card = 0.7 * self.seconds_per_card + 0.3 * (time.monotonic() - begun) / len(work)

    def _known(self, work: Work) -> StoredCard:
        return self._store.get(work.card) or StoredCard(work.card, work.request)

    def _part(self, modality: str, work: list[Work], errors: dict[str, str]) -> None:
        if not work:
            return
        answers = self._call(modality, [w.request for w in work])
        for w, answer in zip(work, answers, strict=True):
            if "value" in answer:
                self._store.put(StoredCard(w.card, w.request, **{modality: answer["value"]}))
            else:
                errors[w.card] = answer["error"]
                tell(logging.WARNING, "card failed", card=w.card, part=modality, **answer)
        failed = all("error" in answer for answer in answers)
        self.trouble[modality] = answers[0]["error"] if failed else None

    def _score(self, work: list[Work]) -> None:
        known = [card for card in map(self._known, work) if card.scores is None]
        if not known:
            return
        try:
            requests = [card.request | {"text": card.text, "image": card.image} for card in known]
            answers = self._call("scores", requests)
        except GeneratorLost as error:
            answers = [{"error": str(error)}] * len(known)
        for card, answer in zip(known, answers, strict=True):
            if "error" in answer:  # a card without scores is still a card
                tell(logging.WARNING, "scores failed", card=card.id, **answer)
            self._store.put(StoredCard(card.id, card.request, scores=answer.get("value", {})))

    def _call(self, task: str, requests: list[Mapping]) -> list[dict]:
        begun = time.monotonic()
        answers = self._generator.call(task, requests, self._beat)
        self._metrics.batch_size.labels(task).observe(len(requests))
        self._metrics.batch_seconds.labels(task).observe(time.monotonic() - begun)
        return answers

    def _beat(self) -> None:
        if time.monotonic() - self._renewed > LEASE_S / 3:
            self._queue.renew()
            self._renewed = time.monotonic()
