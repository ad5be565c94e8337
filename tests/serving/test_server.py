"""The server as a process of its own, by the command that users run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def process(bundle, *options, **environment):
    """`run_dppmg.py serve` on a free port; yields the process and a client."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "run_dppmg.py"), "serve", f"--bundle={bundle}", "--port=0", *options]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip
    try:
        address = re.search(r"http://\S+:\d+", server.stdout.readline()).group()
        with httpx.Client(base_url=address, timeout=90) as client:
            yield server, client
    finally:
        server.kill()
        server.wait()


def ask(client, item, user="u4", **more):
    return client.post("/v1/cards", json={"item": item, "user": user} | more)


def test_sigterm_finishes_what_is_at_hand(bundle_folder, control, tmp_path):
    (control / "slow").touch()
    with process(bundle_folder, f"--store={tmp_path / 's.sqlite3'}") as (server, client):
        assert client.get("/readyz").json()["status"] == "ready"
        assert ask(client, "11", wait=80 / 2).status_code == 200  # the generators are up
        job = ask(client, "12").json()["id"]
        while client.get(f"/v1/jobs/{job}").json()["state"] == "queued":
            time.sleep(0.02)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    with process(bundle_folder, f"--store={tmp_path / 's.sqlite3'}") as (_, client):
        assert ask(client, "12").status_code == 200  # it was finished and kept
        assert client.get(f"/v1/jobs/{job}").json()["state"] == "done"


def test_cards_that_a_stop_cuts_off_wait_for_the_next_server(bundle_folder, control, tmp_path):
    options = [f"--store={tmp_path / 's.sqlite3'}", "--deadline=900"]
    for _ in range(2):  # twice, as two tries that fail would be the end of a card
        (control / "hang").touch()
        with process(bundle_folder, *options, "--drain=1") as (server, client):
            job = ask(client, "13").json()["id"]
            while client.get(f"/v1/jobs/{job}").json()["state"] == "queued":
                time.sleep(0.02)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
    (control / "hang").unlink()
    with process(bundle_folder, *options) as (_, client):
        assert ask(client, "13", wait=60).status_code == 200
        found = client.get(f"/v1/jobs/{job}").json()
        assert found["state"] == "done", found["error"]


def test_two_servers_share_a_store_and_one_may_be_killed(bundle_folder, control, tmp_path):
    store = f"--store={tmp_path / 's.sqlite3'}"
    with process(bundle_folder, store) as (_, one), process(bundle_folder, store) as (second, other):
        made = ask(one, "21", wait=50).json()
        assert ask(other, "21").json() == made  # known to the other without work
        assert other.get(made["image"]).headers["etag"] == one.get(made["image"]).headers["etag"]
        (control / "slow").touch()
        jobs = [ask(other, str(item)).json()["id"] for item in range(30, 38)]
        assert one.get(f"/v1/jobs/{jobs[0]}").status_code == 200
        second.send_signal(signal.SIGKILL)
        states, end = ["queued"], time.monotonic() + 120
        while {"queued", "running"} & set(states) and time.monotonic() < end:
            time.sleep(0.3)
            states = [one.get(f"/v1/jobs/{job}").json()["state"] for job in jobs]
        assert states == ["done"] * 8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--bundle=/nowhere/at/all"], "/nowhere/at/all"),
        (["--host=0.0.0.0"], "--insecure"),
        (["--prot=1"], "--prot"),
        (["taken"], "is the port taken"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bundle_folder, tmp_path, options, named):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if options == ["taken"]:
            options = [f"--port={taken.getsockname()[1]}"]
        command = [sys.executable, str(ROOT / "run_dppmg.py"), "serve", f"--bundle={bundle_folder}", *options]
        environment = {name: value for name, value in os.environ.items() if name != "RECBOLE_DPPMG_API_KEY"}
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert found.returncode == 2
    assert named in found.stderr and "Traceback" not in found.stderr
    assert found.stderr.strip().splitlines()[-1].startswith("error: ")
