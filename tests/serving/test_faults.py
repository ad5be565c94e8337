"""Generators that fail, hang and die; a full queue; clients that leave."""

import asyncio
import threading
import time

import httpx
import pytest

from recbole_dppmg.serving.app import create_app
from recbole_dppmg.serving.options import ServeOptions


def until(true, seconds=90):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return found


def over(client, job):
    told = client.get(f"/v1/jobs/{job}").json()
    return told if told["state"] not in ("queued", "running") else None


def ask(client, item, **more):
    return client.post("/v1/cards", json={"item": str(item), "user": "u4"} | more)


def recommends(client):
    return client.get("/v1/users/u4/recommendations").status_code == 200


def test_one_card_that_cannot_be_made_does_not_fail_its_batch(serving):
    client, _ = serving()
    jobs = {item: ask(client, item).json()["id"] for item in (8, 11, 12, 13)}  # 8 makes the heads raise
    told = {item: until(lambda job=job: over(client, job)) for item, job in jobs.items()}
    assert told[8]["state"] == "failed" and "could not be made" in told[8]["error"]
    assert "Traceback" not in told[8]["error"] and "ValueError" not in told[8]["error"]
    assert [told[item]["state"] for item in (11, 12, 13)] == ["done"] * 3
    assert client.get("/readyz").json()["status"] == "ready"
    waited = ask(client, 8, wait=60)
    assert waited.status_code == 502 and waited.headers["content-type"] == "application/problem+json"


def test_failing_hanging_and_dying_generators_leave_recommendations_alone(serving, control):
    client, _ = serving(limit=3)

    (control / "raise").touch()
    answer = ask(client, 11, wait=60)
    assert answer.status_code == 502 and recommends(client)
    health = client.get("/readyz")
    assert health.status_code == 200 and health.json()["status"] == "degraded"
    assert health.json()["generators"]["text"] == "failing"
    (control / "raise").unlink()
    assert ask(client, 11, wait=60).status_code == 200
    assert client.get("/readyz").json()["status"] == "ready"

    (control / "hang").touch()
    job = ask(client, 12).json()["id"]
    until(lambda: client.get("/readyz").json()["status"] == "degraded")
    assert recommends(client)
    told = until(lambda: over(client, job))
    assert told["state"] == "failed" and "hung" in told["error"]
    (control / "hang").unlink()

    (control / "die").touch()
    job = ask(client, 13).json()["id"]
    assert until(lambda: over(client, job))["state"] == "failed" and recommends(client)
    (control / "die").unlink()
    assert ask(client, 13, wait=60).status_code == 200  # a new process does the work
    assert client.get("/readyz").json()["status"] == "ready"
    assert "dppmg_generator_lost_total 4.0" in client.get("/metrics").text


def test_recommendations_keep_answering_while_the_queue_is_full(engine, tmp_path, control):
    """Sixteen clients ask for cards and recommendations; cards are slow, so most are refused, and none breaks."""
    (control / "slow").touch()
    app, service = create_app(engine, ServeOptions(store=tmp_path / "cards.sqlite3", queue=4, batch=1))
    cards, recommendations = [], []

    async def client_of(number, client):
        for n in range(25):
            item = engine.bundle.items[1 + (25 * number + n) % 150].id
            answer = await client.post("/v1/cards", json={"item": item, "user": "u4", "seed": number})
            cards.append(answer)
            answer = await client.get(f"/v1/users/u{number}/recommendations")
            recommendations.append(answer.status_code)

    async def load():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            await asyncio.gather(*(client_of(number, client) for number in range(16)))
            return (await client.get("/readyz")).json()

    service.runner.start()
    try:
        health = asyncio.run(load())
    finally:
        service.runner.stop(10)
    assert recommendations == [200] * 400
    assert {answer.status_code for answer in cards} <= {200, 202, 429}
    refused = [answer for answer in cards if answer.status_code == 429]
    assert len(refused) > 200 and all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert health["queued"] <= 4 and health["status"] == "ready"


def test_a_client_that_leaves_gives_its_place_up(engine, tmp_path, control):
    (control / "hang").touch()
    app, service = create_app(engine, ServeOptions(store=tmp_path / "cards.sqlite3", queue=2, batch=1, limit=60))

    async def leave():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            # nothing takes work here: both places are held while their clients wait
            leaving = asyncio.create_task(_disconnecting(app, {"item": "11", "user": "u4", "wait": 50}))
            staying = await client.post("/v1/cards", json={"item": "12", "user": "u4"})
            await asyncio.sleep(0.5)
            full = await client.post("/v1/cards", json={"item": "13", "user": "u4"})
            await leaving
            free = await client.post("/v1/cards", json={"item": "13", "user": "u4"})
            gone = await client.delete(staying.headers["location"])
            again = await client.delete(staying.headers["location"])
            return full.status_code, free.status_code, gone.status_code, again.status_code, service.queue.depth()

    assert asyncio.run(leave()) == (429, 202, 204, 409, 1)


async def _disconnecting(app, body):
    """A request whose client goes away after a second."""
    import json

    begun = time.monotonic()
    sent = False

    async def receive():
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        while time.monotonic() < begun + 1:
            await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    headers = [(b"content-type", b"application/json")]
    await app({"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/cards", "raw_path": b"/v1/cards",
               "query_string": b"", "headers": headers, "scheme": "http", "server": ("127.0.0.1", 80),
               "client": ("127.0.0.1", 1), "root_path": ""}, receive, send)  # fmt: skip


def test_a_store_that_fails_for_a_while_does_not_end_the_thread(serving, monkeypatch):
    import sqlite3

    client, service = serving()
    taken, failed = service.queue.take, threading.Event()

    def failing(most):
        if not failed.is_set():
            failed.set()
            raise sqlite3.OperationalError("disk I/O error")
        return taken(most)

    monkeypatch.setattr(service.queue, "take", failing)
    assert failed.wait(10)
    assert ask(client, 11, wait=60).status_code == 200


@pytest.mark.parametrize("path", ["/v1/users/u4/recommendations", "/readyz"])
def test_a_fault_of_ours_is_a_problem_without_secrets(serving, monkeypatch, path):
    client, service = serving()
    monkeypatch.setattr(service.engine, "recommend_user", lambda *_: 1 / 0)
    monkeypatch.setattr(service.queue, "depth", lambda: 1 / 0)
    answer = client.get(path)
    assert answer.status_code == 500 and answer.headers["content-type"] == "application/problem+json"
    assert "division" not in answer.text and answer.json()["request_id"] == answer.headers["x-request-id"]
