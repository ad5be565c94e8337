"""The queue of wanted cards: bounded, durable, shared by all servers of a store.

A job is one request for a card. Jobs for the same card share a place and are answered by the same work; work that
nobody waits for any more is not done. A server that takes work holds a lease on it: if it dies, another takes over.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recbole_dppmg.errors import DPPMGError
from recbole_dppmg.serving.store import Database

LEASE_S = 15.0
_ATTEMPTS = 2
_JOBS_PER_PLACE = 16  # a bound on rows, however often the same cards are asked for
_KEEP_S = 3600.0  # how long a finished job can still be asked about


class QueueFull(DPPMGError):
    """No place is free; try again later."""


@dataclass(frozen=True)
class Job:
    """`state` is queued, running, done, failed or cancelled; `position` counts from 0 while queued."""

    id: str
    card: str
    request: dict[str, Any]
    state: str
    error: str | None = None
    position: int | None = None

    @property
    def over(self) -> bool:
        """Nothing more will happen to it."""
        return self.state not in ("queued", "running")


@dataclass(frozen=True)
class Work:
    """A card that this server has taken on, and how often it was tried before."""

    card: str
    request: dict[str, Any]
    earlier: int


class JobQueue:
    """Jobs of one bundle.

    Args:
        capacity: cards that may wait.
        deadline_s: seconds that a job may wait before its work starts.
    """

    def __init__(self, database: Database, bundle: str, capacity: int, deadline_s: float):
        self._database, self._bundle, self._capacity, self._deadline_s = database, bundle, capacity, deadline_s
        self._owner = uuid.uuid4().hex

    def submit(self, card: str, request: dict[str, Any]) -> Job:
        """Take a place in the queue, or share that of the same card.

        Raises:
            QueueFull: all places are taken.
        """
        job, now = uuid.uuid4().hex, time.time()
        with self._database.write() as connection:
            self._expire(connection, now)
            jobs, cards, known = connection.execute(
                "SELECT count(*) FILTER (WHERE state = 'queued'), count(DISTINCT card) FILTER (WHERE state = 'queued'),"
                " count(*) FILTER (WHERE card = ?) FROM jobs WHERE state IN ('queued', 'running') AND bundle = ?",
                (card, self._bundle),
            ).fetchone()
            if jobs >= _JOBS_PER_PLACE * self._capacity or (cards >= self._capacity and not known):
                raise QueueFull(f"all {self._capacity} places for cards are taken; try again later")
            connection.execute("DELETE FROM jobs WHERE finished < ?", (now - _KEEP_S,))
            connection.execute(
                "INSERT INTO jobs (id, bundle, card, request, state, created, deadline) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job, self._bundle, card, json.dumps(request), "queued", now, now + self._deadline_s),
            )
        return Job(job, card, request, "queued", position=jobs)

    def get(self, job: str) -> Job | None:
        """A job by its id; None if there is none, or it ended more than an hour ago."""
        connection = self._database.connection
        row = connection.execute(
            "SELECT id, card, request, state, error, created FROM jobs WHERE id = ? AND bundle = ?", (job, self._bundle)
        ).fetchone()
        if row is None:
            return None
        position = None
        if row[3] == "queued":
            position = connection.execute(
                "SELECT count(*) FROM jobs WHERE state = 'queued' AND bundle = ? AND created < ?",
                (self._bundle, row[5]),
            ).fetchone()[0]
        return Job(row[0], row[1], json.loads(row[2]), row[3], row[4], position)

    def cancel(self, job: str) -> bool:
        """Give up a job's place; work that has started is finished and kept. False if the job was over."""
        with self._database.write() as connection:
            changed = connection.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ?"
                " WHERE id = ? AND bundle = ? AND state IN ('queued', 'running')",
                (time.time(), job, self._bundle),
            )
        return changed.rowcount == 1

    def depth(self) -> int:
        """Cards that wait."""
        return self._database.connection.execute(
            "SELECT count(DISTINCT card) FROM jobs WHERE state = 'queued' AND bundle = ?", (self._bundle,)
        ).fetchone()[0]

    def take(self, most: int) -> list[Work]:
        """The oldest waiting cards, leased to this server; a card that failed a batch before comes alone."""
        connection, now = self._database.connection, time.time()
        if not connection.execute("SELECT 1 FROM jobs WHERE state IN ('queued', 'running') LIMIT 1").fetchone():
            return []
        with self._database.write() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'queued', owner = NULL WHERE state = 'running' AND lease < ?", (now,)
            )
            self._expire(connection, now)
            rows = connection.execute(
                "SELECT card, request, max(attempts) FROM jobs WHERE state = 'queued' AND bundle = ?"
                " AND card NOT IN (SELECT card FROM jobs WHERE state = 'running')"
                " GROUP BY card ORDER BY min(created) LIMIT ?",
                (self._bundle, most),
            ).fetchall()
            work = [Work(card, json.loads(request), attempts) for card, request, attempts in rows]
            if any(w.earlier for w in work):
                fresh = [w for w in work if not w.earlier]
                work = work[:1] if work[0].earlier else fresh
            connection.executemany(
                "UPDATE jobs SET state = 'running', owner = ?, lease = ?, attempts = attempts + 1"
                " WHERE state = 'queued' AND card = ?",
                [(self._owner, now + LEASE_S, w.card) for w in work],
            )
        return work

    @staticmethod
    def _expire(connection, now: float) -> None:
        connection.execute(
            "UPDATE jobs SET state = 'failed', finished = ?, error = 'the generator died or hung'"
            " WHERE state = 'queued' AND attempts >= ?",
            (now, _ATTEMPTS),
        )
        connection.execute(
            "UPDATE jobs SET state = 'failed', finished = ?, error = 'waited too long; ask again'"
            " WHERE state = 'queued' AND deadline < ?",
            (now, now),
        )

    def renew(self) -> None:
        """Hold on to this server's work."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE jobs SET lease = ? WHERE state = 'running' AND owner = ?", (time.time() + LEASE_S, self._owner)
            )

    def finish(self, card: str, error: str | None = None) -> None:
        """The card is made, or could not be: its jobs, also those that came meanwhile, are over."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, error = ?, finished = ?"
                " WHERE card = ? AND bundle = ? AND state IN ('queued', 'running')",
                ("failed" if error else "done", error, time.time(), card, self._bundle),
            )

    def put_back(self, cards: Sequence[str], counted: bool = True) -> None:
        """Let work be tried again, each card on its own; after two tries that are counted it has failed."""
        with self._database.write() as connection:
            connection.executemany(
                "UPDATE jobs SET state = 'queued', owner = NULL, attempts = attempts - ?"
                " WHERE card = ? AND state = 'running' AND owner = ?",
                [(int(not counted), card, self._owner) for card in cards],
            )
            self._expire(connection, time.time())
