"""The store: finished cards and the queue of wanted ones, in one SQLite file that several servers may share.

Write-ahead logging makes each statement below whole or absent, also under `kill -9`. Every thread has its own
connection.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_dppmg.errors import DataError

_VERSION = 1
_TOUCH_S = 60  # a card's last use is written at most this often, so that reading stays reading
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cards (
    id TEXT PRIMARY KEY, request TEXT NOT NULL, text TEXT, image BLOB, scores TEXT,
    size INTEGER NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cards_by_use ON cards (used, size);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, bundle TEXT NOT NULL, card TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL,
    error TEXT, created REAL NOT NULL, deadline REAL NOT NULL, finished REAL,
    owner TEXT, lease REAL, attempts INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, created);
CREATE INDEX IF NOT EXISTS jobs_by_card ON jobs (card);
"""


@dataclass(frozen=True)
class StoredCard:
    """What is known of a card: `request` (tokens, item, seed) and the parts made so far.

    `image` is PNG bytes; `scores` is None until both parts are there.
    """

    id: str
    request: dict[str, Any]
    text: str | None = None
    image: bytes | None = None
    scores: dict[str, float] | None = None


@dataclass
class Database:
    """One SQLite file, opened once per thread.

    Raises:
        DataError: the file is no database, or of another version of this package.
    """

    path: Path
    _threads: threading.local = field(default_factory=threading.local, repr=False)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.write() as connection:
                found = connection.execute("PRAGMA user_version").fetchone()[0]
                if found not in (0, _VERSION):
                    raise DataError(
                        f"{self.path}: store of version {found}, this one writes {_VERSION}; remove the file"
                    )
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: cannot be used as a store ({error}); remove it or name another") from error

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, in autocommit mode."""
        if not hasattr(self._threads, "connection"):
            connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # holds for a file that is still empty
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # enough against kill -9; FULL adds power cuts
            self._threads.connection = connection
        return self._threads.connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that has the write lock from its first statement, so that what it reads stays true."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


class CardStore:
    """Finished cards by id, at most `max_bytes` of them; the least recently used go first."""

    def __init__(self, database: Database, max_bytes: int):
        self._database, self._max_bytes = database, max_bytes

    def get(self, card: str) -> StoredCard | None:
        """The card with the parts made so far, or None; counts as a use of it."""
        row = self._database.connection.execute(
            "SELECT id, request, text, image, scores, used FROM cards WHERE id = ?", (card,)
        ).fetchone()
        if row is None:
            return None
        now = time.time()
        if now - row[5] > _TOUCH_S:
            self._database.connection.execute("UPDATE cards SET used = ? WHERE id = ?", (now, card))
        return StoredCard(row[0], json.loads(row[1]), row[2], row[3], json.loads(row[4]) if row[4] else None)

    def put(self, card: StoredCard) -> None:
        """Write the parts that are not None, beside what is there; then make room."""
        scores = None if card.scores is None else json.dumps(card.scores)
        request = json.dumps(card.request)
        size = len(request) + len(card.text or "") + len(card.image or b"") + 256
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO cards (id, request, text, image, scores, size, used) VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET text = coalesce(excluded.text, text),"
                " image = coalesce(excluded.image, image), scores = coalesce(excluded.scores, scores),"
                " size = size + excluded.size, used = excluded.used",
                (card.id, request, card.text, card.image, scores, size, time.time()),
            )
            evicted = self._evict(connection, card.id)
        if evicted:
            # as a script: `execute` would take one step, which is one page
            self._database.connection.executescript("PRAGMA incremental_vacuum")

    def _evict(self, connection: sqlite3.Connection, kept: str) -> int:
        excess = self._size(connection) - self._max_bytes
        if excess <= 0:
            return 0
        # the oldest whose sizes, added up, make room
        return connection.execute(
            "DELETE FROM cards WHERE id IN (SELECT id FROM (SELECT id, size, sum(size) OVER"
            " (ORDER BY used, id) AS through FROM cards WHERE id != ?) WHERE through - size < ?)",
            (kept, excess),
        ).rowcount

    @staticmethod
    def _size(connection: sqlite3.Connection) -> int:
        return connection.execute("SELECT coalesce(sum(size), 0) FROM cards").fetchone()[0]

    def usage(self) -> tuple[int, int]:
        """Cards held, and their bytes."""
        return self._database.connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM cards").fetchone()
