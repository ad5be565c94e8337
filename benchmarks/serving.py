"""How fast a bundle is served: in process, over HTTP, cards in batches, and 1 user against 1 million items.

    OMP_NUM_THREADS=2 python benchmarks/serving.py --bundle=outputs/latest/bundle

Over HTTP it uses `wrk` where it is installed (Debian's package), else a loop of its own, which is slower than the
server it measures. Traffic goes to this machine only. In brackets are seconds of the CPU, which a busy machine blurs
little: with one thread and nothing else running they are those of the clock.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.model.space import PreferenceSpace
from recbole_dppmg.serving.engine import Engine
from recbole_dppmg.serving.generator import Generator

ROOT = Path(__file__).parents[1]
_SECONDS = 10
_PARTS = ["process", "http", "cards", "items"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--calls", type=int, default=2000, help="calls per latency [%(default)s]")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="what to measure [all]")
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the large catalogue [%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the server does
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    engine = Engine(options.bundle)
    parts = {
        "process": lambda: in_process(engine, options.calls),
        "http": lambda: over_http(options.bundle, engine),
        "cards": lambda: in_batches(engine),
        "items": lambda: large_catalogue(options.items),
    }
    for name in options.parts:
        parts[name]()


def latency(told: str, call: Callable[[int], object], calls: int) -> None:
    """Median and 99th percentile of a call, by the clock and of the CPU, after a tenth as many to warm up."""
    taken: dict[Callable[[], float], list[float]] = {time.perf_counter: [], time.process_time: []}
    for n in range(-calls // 10, calls):
        begun = [clock() for clock in taken]
        call(n)
        for (clock, row), start in zip(taken.items(), begun, strict=True):
            if n >= 0:
                row.append(1000 * (clock() - start))
    (p50, p99), (cpu50, cpu99) = ((row[calls // 2], row[int(0.99 * calls)]) for row in map(sorted, taken.values()))
    print(f"{told}: p50 {p50:.2f} ms [{cpu50:.2f}], p99 {p99:.2f} ms [{cpu99:.2f}] ({calls} calls)", flush=True)


def in_process(engine: Engine, calls: int) -> None:
    users = engine.bundle.user_ids[1:]
    items = [item.id for item in engine.bundle.items[1:]]
    histories = [items[n : n + 20] for n in range(0, max(1, len(items) - 20), 7)]
    latency("recommend a known user, k=10", lambda n: engine.recommend_user(users[n % len(users)], 10), calls)
    latency("recommend by 20 items (fold-in), k=10",
            lambda n: engine.recommend_history(histories[n % len(histories)], 10), calls)  # fmt: skip


def over_http(bundle: str, engine: Engine) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "run_dppmg.py"), "serve", f"--bundle={bundle}", "--port=0",
                   f"--store={folder}/cards.sqlite3"]  # fmt: skip
        begun = time.perf_counter()
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            port = int(re.search(r"http://\S+:(\d+)", server.stdout.readline())[1])
            while _get(port, "/readyz") != 200:
                time.sleep(0.02)
            print(f"start to ready: {time.perf_counter() - begun:.1f} s")
            path = f"/v1/users/{engine.bundle.user_ids[1]}/recommendations?k=10"
            if wrk := shutil.which("wrk"):
                url = f"http://127.0.0.1:{port}{path}"
                told = subprocess.run([wrk, "-t1", "-c16", f"-d{_SECONDS}s", "--latency", url],
                                      capture_output=True, text=True, check=True).stdout  # fmt: skip
                lines = [line.strip() for line in told.splitlines()]
                kept = [line for line in lines if line.startswith(("50%", "99%", "Requests/sec", "Non-2xx"))]
                print(f"over HTTP, wrk -t1 -c16: {', '.join(kept)}")
            else:
                print(f"over HTTP, a loop of 8 threads: {_loop(port, path):.0f} requests/s")
        finally:
            server.terminate()
            server.wait()


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _loop(port: int, path: str) -> float:
    counts, until = [0] * 8, time.monotonic() + _SECONDS

    def ask(n: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while time.monotonic() < until:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"the server answered {answer.status}")
            counts[n] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / _SECONDS


def in_batches(engine: Engine) -> None:
    """Eight cards together, and the same eight one by one."""
    users = engine.bundle.user_ids[1:9]
    orders = [
        engine.order(engine.bundle.items[engine.recommend_user(user, 1).items[0]].id, engine.tokens_of_user(user), 0)
        for user in users
    ]
    requests = [order.request() for order in orders]
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    generator = Generator(engine.folder, threads, 600)
    try:
        for modality, head in engine.heads.items():
            generator.call(modality, requests[:1], lambda: None)  # loads the head
            times = [(time.perf_counter(), _cpu_of(generator))]
            for batches in ([requests], [[request] for request in requests]):
                for batch in batches:
                    generator.call(modality, batch, lambda: None)
                times.append((time.perf_counter(), _cpu_of(generator)))
            (together, cpu), (single, cpu1) = ([b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(times))
            print(f"8 cards, {modality} by {head}: batch {together:.2f} s [{cpu:.2f}], singles {single:.2f} s "
                  f"[{cpu1:.2f}], {single / together:.1f} x [{cpu1 / cpu:.1f}]", flush=True)  # fmt: skip
    finally:
        generator.stop()


def _cpu_of(generator: Generator) -> float:
    """Seconds of the CPU that the generators' process has had (Linux)."""
    fields = Path(f"/proc/{generator._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def large_catalogue(n_items: int, width: int = 64) -> None:
    """Random preferences of unit length: the work does not depend on their values."""
    generator = torch.Generator().manual_seed(1)

    def unit(rows: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)

    channels = ("id", "text", "image")
    items, users = {c: unit(n_items + 1) for c in channels}, {c: unit(101) for c in channels}
    space = PreferenceSpace(
        channels=channels, weights=torch.full((3,), 1 / 3), item_bias=torch.zeros(n_items + 1),
        history=ItemLists.of([[]] + [list(range(1, 51))] * 100), user_preference=users, item_preference=items,
        start=items, travelled=items,
        codebooks={m: torch.randn(4, 64, width, generator=generator) for m in channels[1:]},
        user_codes={m: torch.zeros(101, 4, dtype=torch.int64) for m in channels[1:]}, projection={},
    )  # fmt: skip
    one = torch.tensor([1])
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        latency(f"1 user against {n_items:,} items, k=10, {threads} threads", lambda _: space.recommend(one, 10), 20)


if __name__ == "__main__":
    main()
