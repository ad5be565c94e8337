"""The store: whole cards only, the least recently used go first, shared by processes, safe against kill -9."""

import os
import signal
import subprocess
import sys
import time

import pytest

from recbole_dppmg.errors import DataError
from recbole_dppmg.serving.store import CardStore, Database, StoredCard


def card(n, size=1000):
    return StoredCard(
        f"{n:016x}", {"item": n, "tokens": {"text": [1]}, "seed": 0}, f"text {n}", bytes([n % 256]) * size, {"p": 1.0}
    )


def test_parts_add_up(tmp_path):
    store = CardStore(Database(tmp_path / "cards.sqlite3"), 2**20)
    whole = card(1)
    assert store.get(whole.id) is None
    store.put(StoredCard(whole.id, whole.request, text=whole.text))
    assert store.get(whole.id) == StoredCard(whole.id, whole.request, text="text 1")
    store.put(StoredCard(whole.id, whole.request, image=whole.image))
    store.put(StoredCard(whole.id, whole.request, scores={"p": 1.0}))
    assert store.get(whole.id) == whole
    assert CardStore(Database(tmp_path / "cards.sqlite3"), 2**20).get(whole.id) == whole


def test_the_least_recently_used_go_first(tmp_path):
    database = Database(tmp_path / "cards.sqlite3")
    store = CardStore(database, 10_000)
    for n in range(7):
        store.put(card(n))
    database.connection.execute("UPDATE cards SET used = used - 1000")
    assert store.get(card(0).id)  # used now
    for n in range(7, 10):
        store.put(card(n))
    held = [n for n in range(10) if store.get(card(n).id)]
    assert 0 in held and held[-3:] == [7, 8, 9] and 1 not in held and 2 not in held
    count, size = store.usage()
    assert count == len(held) and size <= 10_000


def test_the_file_shrinks_with_what_is_dropped(tmp_path):
    database = Database(tmp_path / "cards.sqlite3")
    store = CardStore(database, 40 * 2**20)
    for n in range(20):
        store.put(card(n, 2**20))
    CardStore(database, 3 * 2**20).put(card(99, 2**20))
    assert store.usage()[0] == 2
    assert database.connection.execute("PRAGMA page_count").fetchone()[0] * 4096 < 5 * 2**20


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "x.sqlite3").write_bytes(b"not a database, certainly not one" * 200)
    with pytest.raises(DataError, match="cannot be used as a store"):
        Database(tmp_path / "x.sqlite3")
    Database(tmp_path / "y.sqlite3").connection.execute("PRAGMA user_version = 7")
    with pytest.raises(DataError, match="version 7"):
        Database(tmp_path / "y.sqlite3")


_WRITER = """
import sys
from pathlib import Path
from recbole_dppmg.serving.store import CardStore, Database, StoredCard
store = CardStore(Database(Path(sys.argv[1])), 2**30)
for n in range(int(sys.argv[2]), 10**9, 2):
    request = {"item": n, "tokens": {"text": [1]}, "seed": 0}
    store.put(StoredCard(f"{n:016x}", request, f"text {n}", bytes([n % 256]) * 200_000, {"p": 1.0}))
    print(n, flush=True)
"""


def test_kill_in_the_middle_of_writes_loses_nothing_finished(tmp_path):
    path = tmp_path / "cards.sqlite3"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    for writer in writers:
        for _ in range(15):  # each is well under way
            assert writer.stdout.readline()
    time.sleep(0.013)
    finished = []
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        finished += [int(line) for line in writer.communicate()[0].splitlines() if line.strip().isdecimal()]
    database = Database(path)
    store = CardStore(database, 2**30)
    assert database.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for n in finished[:-2]:  # a last line may be cut
        assert store.get(f"{n:016x}") == card(n, 200_000)
    ids = [row[0] for row in database.connection.execute("SELECT id FROM cards")]
    assert len(ids) >= 30
    for identity in ids:  # nothing half
        assert store.get(identity) == card(int(identity, 16), 200_000)
