"""The API over HTTP: answers, cards, jobs, images, problems."""

import io
import json
import time

import pytest
from PIL import Image


def finished(client, job, seconds=60):
    """Poll a job until it is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        told = client.get(f"/v1/jobs/{job}").json()
        if told["state"] not in ("queued", "running"):
            return told
        time.sleep(0.05)
    raise AssertionError(f"job not over: {told}")


def test_known_user_and_someone_new(server, engine):
    client, _ = server
    known = client.get("/v1/users/u4/recommendations", params={"k": 5}).json()
    assert len(known["items"]) == 5 and set(known["tokens"]) == {"text", "image"}
    assert known["items"][0]["score"] >= known["items"][4]["score"]
    best = known["items"][0]["id"]
    without = client.get("/v1/users/u4/recommendations", params={"k": 5, "exclude": [best]}).json()
    assert without["items"][0] == known["items"][1]
    user = client.get("/v1/users/u4").json()
    assert user["tokens"] == known["tokens"] == client.get("/v1/users/u4/tokens").json()
    assert user["history_size"] == len(user["history"]) > 5
    new = client.post("/v1/recommendations", json={"history": [i["id"] for i in user["history"]], "k": 3}).json()
    assert len(new["items"]) == 3 and not {i["id"] for i in new["items"]} & {i["id"] for i in user["history"]}
    token = known["tokens"]["text"][0]
    assert token["name"] == f"<text_0_{token['code']}>" and token["items"]


def test_a_card_is_made_once_and_then_known(server):
    client, _ = server
    asked = {"item": "21", "user": "u4"}
    answer = client.post("/v1/cards", json=asked)
    assert answer.status_code == 202 and answer.headers["location"].startswith("/v1/jobs/")
    job = finished(client, answer.json()["id"])
    assert job["state"] == "done" and job["card"]["complete"]
    again = client.post("/v1/cards", json=asked)
    assert (
        again.status_code == 200 and again.json() == job["card"] == client.get(f"/v1/cards/{job['card']['id']}").json()
    )
    assert again.json()["text"].startswith("Film 21, because of <text_0_")
    tokens = {m: [int(name.rstrip(">").split("_")[2]) for name in names] for m, names in again.json()["tokens"].items()}
    same = client.post("/v1/cards", json={"item": "21", "tokens": tokens})
    assert same.status_code == 200 and same.json()["id"] == again.json()["id"]


def test_waiting_gives_the_card_itself(server):
    client, _ = server
    answer = client.post("/v1/cards", json={"item": "22", "history": ["1", "5"], "wait": 50})
    assert answer.status_code == 200 and answer.json()["complete"]


def test_another_users_tokens_change_the_card(server):
    client, _ = server
    cards = [client.post("/v1/cards", json={"item": "23", "user": u, "wait": 50}).json() for u in ("u4", "u5")]
    assert cards[0]["tokens"] != cards[1]["tokens"]
    assert cards[0]["text"] != cards[1]["text"]
    images = [client.get(card["image"]).content for card in cards]
    assert images[0] != images[1]


def test_images_have_etags_and_two_formats(server):
    client, _ = server
    card = client.post("/v1/cards", json={"item": "24", "user": "u4", "wait": 50}).json()
    png = client.get(card["image"])
    assert png.headers["content-type"] == "image/png" and Image.open(io.BytesIO(png.content)).size == (64, 64)
    webp = client.get(card["image"].replace(".png", ".webp"))
    assert webp.headers["content-type"] == "image/webp" and Image.open(io.BytesIO(webp.content)).format == "WEBP"
    assert png.headers["etag"] != webp.headers["etag"]
    unchanged = client.get(card["image"], headers={"if-none-match": png.headers["etag"]})
    assert unchanged.status_code == 304 and not unchanged.content
    cover = client.get("/v1/items/24/image")
    assert cover.status_code == 200 and cover.headers["content-type"] == "image/png"
    assert client.get("/v1/items/24/image", headers={"if-none-match": cover.headers["etag"]}).status_code == 304
    assert client.get("/v1/items/9/image").status_code == 404


def test_events_tell_every_change_and_end(server):
    client, _ = server
    jobs = [client.post("/v1/cards", json={"item": i, "user": "u4"}).json()["id"] for i in ("31", "32", "33")]
    events = []
    with client.stream("GET", "/v1/events", params={"job": jobs}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("event", "data"):
                events.append(value)
    told = [json.loads(data) for name, data in zip(events[::2], events[1::2], strict=True) if name == "job"]
    assert {job["id"] for job in told if job["state"] == "done" and job["card"]["complete"]} == set(jobs)
    assert events[-2] == "end" and json.loads(events[-1]) == {"unfinished": []}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "named"),
    [
        ("GET", "/v1/users/nobody/recommendations", None, 404, "'nobody'"),
        ("GET", "/v1/users/u4/recommendations?k=0", None, 422, "query.k"),
        ("GET", "/v1/users/u4/recommendations?k=101", None, 422, "query.k"),
        ("GET", "/v1/users/u4/recommendations?exclude=zzz", None, 422, "'zzz'"),
        ("POST", "/v1/recommendations", {"history": ["zzz"]}, 422, "'zzz'"),
        ("POST", "/v1/recommendations", {"history": ["1"] * 501}, 422, "body.history"),
        ("POST", "/v1/recommendations", {"histry": []}, 422, "histry"),
        ("POST", "/v1/cards", {"item": "1"}, 422, "exactly one"),
        ("POST", "/v1/cards", {"item": "1", "user": "u4", "history": []}, 422, "exactly one"),
        ("POST", "/v1/cards", {"item": "../../etc/passwd", "user": "u4"}, 422, "not among"),
        ("POST", "/v1/cards", {"item": "http://x/y.png", "user": "u4"}, 422, "not among"),
        ("POST", "/v1/cards", {"item": "1", "user": "nobody"}, 404, "'nobody'"),
        ("POST", "/v1/cards", {"item": "1", "tokens": {"text": [999] * 4, "image": [0] * 4}}, 422, "tokens.text"),
        ("GET", "/v1/items/zzz/image", None, 404, "'zzz'"),
        ("GET", "/v1/items/..%2f..%2fconfig.json/image", None, 404, "not among"),
        ("GET", "/v1/cards/0123456789abcdef", None, 404, "no such card"),
        ("GET", "/v1/cards/0123456789abcdef/image.png", None, 404, "no such image"),
        ("GET", "/v1/jobs/" + "0" * 32, None, 404, "no such job"),
        ("GET", "/v1/events?job=" + "0" * 32, None, 404, "no such job"),
        ("GET", "/page/../app.py", None, 404, ""),
        ("GET", "/page/%2e%2e/app.py", None, 404, ""),
        ("GET", "/nowhere", None, 404, ""),
        ("POST", "/healthz", None, 405, ""),
    ],
)
def test_problems_name_what_is_wrong(server, method, path, body, status, named):
    client, _ = server
    answer = client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status and named in told["detail"]
    assert told["request_id"] == answer.headers["x-request-id"]


def test_hostile_titles_travel_as_text(server):
    client, _ = server
    found = client.get("/v1/items", params={"query": "script"})
    assert found.headers["content-type"] == "application/json" and found.json()[0]["title"].startswith("<script>")


def test_metrics_count_cards_and_requests(server):
    client, _ = server

    def counted():
        lines = (line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    before = counted()
    for _ in range(2):
        client.post("/v1/cards", json={"item": "25", "user": "u4", "wait": 50})
    after = counted()
    for name, more in (('dppmg_cards_total{outcome="made"}', 1), ('dppmg_cards_total{outcome="cached"}', 1),
                       ('dppmg_http_requests_total{method="POST",route="/v1/cards",status="200"}', 2),
                       ('dppmg_batch_cards_count{task="image"}', 1), ("dppmg_store_cards", 1)):  # fmt: skip
        assert after[name] - before.get(name, 0) == more, name


def test_the_description_has_examples_and_problems(server):
    client, _ = server
    schema = client.get("/openapi.json").json()
    assert schema["components"]["schemas"]["CardWanted"]["examples"]
    answers = schema["paths"]["/v1/cards"]["post"]["responses"]
    assert {"200", "202", "401", "404", "413", "422", "429", "502"} <= set(answers)
    assert "application/problem+json" in answers["429"]["content"]
    docs = client.get("/docs").text
    assert "http://" not in docs and "https://" not in docs


def test_one_seed_one_card(server):
    client, _ = server
    made = [client.post("/v1/cards", json={"item": "26", "user": "u4", "seed": s, "wait": 50}).json() for s in (1, 2)]
    assert made[0]["id"] != made[1]["id"] and made[0]["text"] != made[1]["text"]
