"""The OpenAI-compatible head against a real server, `transformers serve`, with faults put in by a proxy."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recbole_dppmg.assets import resolve
from recbole_dppmg.errors import ConfigError
from recbole_dppmg.generators.base import Catalogue
from recbole_dppmg.generators.openai import OpenAIHead, _Pace
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import Item, TextRequest

KEY = "sk-very-secret"
ITEMS = [
    Item(str(n), title, "", ("Comedy", "Drama"), 1990 + n) for n, title in enumerate(("Heat", "Emma", "Babe", "Up"))
]
REQUESTS = [TextRequest(item, {"text": (0,), "image": (1,)}, seed=3) for item in ITEMS]
GLOSSARY = {"<text_0_0>": {"words": ["comedy", "family"]}, "<image_0_1>": {"words": ["family", "animation"]}}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `transformers serve` with SmolLM2."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log.txt"
    command = [Path(sys.executable).with_name("transformers"), "serve", resolve("SmolLM2-135M-Instruct")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, but for the faults that are queued for an item's title."""

    daemon_threads = True

    def __init__(self, upstream: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.faults, self.calls, self.bodies, self.released = upstream, {}, [], [], threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told = json.loads(body)["messages"][-1]["content"]
        title = told.splitlines()[0].removeprefix("Item: ")
        self.server.calls.append(title)
        self.server.bodies.append(json.loads(body))
        queued = self.server.faults.get(title, [])
        fault = queued.pop(0) if queued else None
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self._reply(401, b"{}")
        if fault == "hang":
            self.server.released.wait(30)
            return None
        if fault == "broken":
            return self._reply(200, b'{"choices": [{"mess')
        if fault == "empty":
            return self._reply(200, b'{"choices": [{"message": {"content": " \\n"}}]}')
        if fault:
            return self._reply(fault, b"no", {"Retry-After": "0.2"} if fault == 429 else {})
        request = urllib.request.Request(
            self.server.upstream.removesuffix("/v1") + self.path, body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return self._reply(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return self._reply(error.code, error.read())

    def _reply(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(server):
    proxy = Proxy(server)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    yield proxy
    proxy.released.set()
    proxy.shutdown()
    proxy.server_close()
    thread.join()


@pytest.fixture
def make(monkeypatch):
    def head(url, key=KEY, **keys):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        keys = {"openai_backoff": 0.05, "openai_retries": 3, "openai_timeout": 300, "text_max_new_tokens": 12} | keys
        head = OpenAIHead(str(resolve("SmolLM2-135M-Instruct")), {}, Settings(openai_base_url=url, **keys), 0)
        head.attach(Catalogue(None, ITEMS, GLOSSARY))
        return head

    return head


def test_a_real_server_answers(make, proxy):
    results = make(proxy.url).generate(REQUESTS[:2])
    for request, result in zip(REQUESTS, results, strict=False):
        assert result.error is None
        assert request.item.title in result.text
        assert "\n" not in result.text
    body = next(b for b in proxy.bodies if "Heat" in b["messages"][-1]["content"])
    assert body["messages"][-1]["content"] == (
        "Item: Heat\nYear: 1990\nKind: Comedy, Drama\nReader's taste: comedy, family, animation"
    )
    assert body["seed"] == 3


def test_faults_that_pass_are_tried_again(make, proxy):
    proxy.faults = {"Heat": [429, "broken"], "Emma": [500, 503], "Up": ["empty"]}
    start = time.monotonic()
    results = make(proxy.url).generate([REQUESTS[0], REQUESTS[1], REQUESTS[3]])
    assert [r.error for r in results] == [None] * 3
    assert sorted(proxy.calls) == ["Emma"] * 3 + ["Heat"] * 3 + ["Up"] * 2
    assert time.monotonic() - start > 0.2  # as the server asked


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (429, "HTTP 429 after 4 tries"),
        (500, "HTTP 500 after 4 tries"),
        (404, "HTTP 404"),
        ("broken", "the answer is not the JSON of a chat completion after 4 tries"),
        ("empty", "the answer is empty after 4 tries"),
    ],
)
def test_a_fault_that_stays_is_told_and_the_others_go_on(make, proxy, fault, told):
    proxy.faults = {"Emma": [fault] * 9}
    results = make(proxy.url).generate(REQUESTS[:2])
    assert results[0].error is None and results[0].text
    assert results[1].text == "" and results[1].error == f"openai: {told}"


def test_a_server_that_hangs(make, proxy):
    proxy.faults = {"Emma": ["hang"] * 9}
    head = make(proxy.url, openai_timeout=0.5, openai_retries=1)
    assert head.generate([REQUESTS[1]])[0].error == "openai: no answer within 0.5 s after 2 tries"


def test_a_wrong_key_is_told_once_and_not_shown(make, proxy):
    results = make(proxy.url, key="sk-wrong", openai_concurrency=1).generate(REQUESTS)
    assert all("OPENAI_API_KEY was refused" in r.error for r in results)
    assert "sk-wrong" not in str(results)
    assert len(proxy.calls) == 1


def test_nobody_there(make):
    head = make(f"http://127.0.0.1:{free_port()}/v1", openai_retries=1)
    assert head.generate(REQUESTS[:1])[0].error == "openai: no connection (ConnectError) after 2 tries"


def test_an_address_that_is_none(make):
    with pytest.raises(ConfigError, match="openai_base_url"):
        make("file:///etc/passwd")


def test_requests_are_spread_over_the_minute():
    pace, start = _Pace(1200), time.monotonic()
    for _ in range(4):
        pace.wait()
    assert 0.14 < time.monotonic() - start < 2
