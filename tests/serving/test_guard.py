"""Keys, rates, sizes, headers, addresses."""

import base64
import json
import logging

import pytest

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.serving.main import options_from
from recbole_dppmg.serving.options import KEY_VARIABLE, ServeOptions

KEY, OTHER = "a-key-of-the-tests-0123", "another-key-of-the-tests"
PATH = "/v1/users/u4/tokens"


def basic(password):
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.fixture
def locked(serving):
    return serving(keys=(KEY, OTHER))[0]


@pytest.mark.parametrize(
    "headers",
    [{"x-api-key": KEY}, {"x-api-key": OTHER}, {"authorization": f"Bearer {KEY}"}, {"authorization": basic(KEY)}],
)
def test_the_key_opens(locked, headers):
    assert locked.get(PATH, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": KEY[:-1]}, {"x-api-key": ""}, {"authorization": "Bearer"}, {"authorization": "Basic %%%"},
     {"authorization": basic("")}, {"x-api-key": "ключ".encode()}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/page/app.js", PATH, "/metrics", "/openapi.json", "/docs", "/nowhere"])
def test_without_it_only_health_answers(locked, path, headers):
    answer = locked.get(path, headers=headers)
    assert answer.status_code == 401 and answer.json()["status"] == 401
    assert "Basic" in answer.headers["www-authenticate"]  # a browser asks for it
    assert KEY not in answer.text


def test_health_is_open(locked):
    assert locked.get("/healthz").json()["status"] == "ok"
    assert locked.get("/readyz").json()["status"] == "ready"


def test_the_rate_is_per_key(serving):
    client, _ = serving(keys=(KEY, OTHER), rate=2)
    statuses = [client.get(PATH, headers={"x-api-key": KEY}).status_code for _ in range(12)]
    assert statuses[:4] == [200] * 4 and 429 in statuses
    refused = client.get(PATH, headers={"x-api-key": KEY})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert client.get(PATH, headers={"x-api-key": OTHER}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_large_bodies_are_refused_also_in_pieces(serving):
    client, _ = serving(body_kb=2)
    body = json.dumps({"history": ["1"] * 480}).encode()
    whole = client.post("/v1/recommendations", content=body, headers={"content-type": "application/json"})
    pieces = client.post("/v1/recommendations", content=iter([body[:900], body[900:]]),
                         headers={"content-type": "application/json"})  # fmt: skip
    for answer in (whole, pieces):
        assert answer.status_code == 413 and "2048 bytes" in answer.json()["detail"]


def test_pages_allow_only_this_server(serving):
    client, _ = serving()
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    for name in ("/", "/page/app.js", "/page/view.js", "/page/api.js", "/page/combobox.js", "/page/style.css"):
        text = client.get(name).text
        assert "//" not in text.replace("// ", "") or "http" not in text, name
        assert ".innerHTML" not in text and "style=" not in text, name


def test_a_request_id_is_kept_or_made(serving):
    client, _ = serving()
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(client.get("/healthz", headers={"x-request-id": 'a b"{}'}).headers["x-request-id"]) == 32


def test_the_log_names_routes_not_users(serving, caplog):
    client, _ = serving()
    with caplog.at_level(logging.INFO, "recbole_dppmg.serving"):
        client.get("/v1/users/u4/recommendations", headers={"x-request-id": "seen"})
    fields = next(r.fields for r in caplog.records if getattr(r, "fields", {}).get("request") == "seen")
    assert fields["route"] == "/v1/users/{user:path}/recommendations" and fields["status"] == 200
    assert "u4" not in json.dumps(fields)


def test_other_addresses_need_a_key_or_a_word(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="--insecure"):
            options_from(["--bundle=b", f"--host={host}"])
    assert options_from(["--bundle=b", "--host=0.0.0.0", "--insecure"])[1].requests_per_second == 100
    for host in ("127.0.0.1", "::1", "localhost"):
        assert options_from(["--bundle=b", f"--host={host}"])[1].requests_per_second == 0
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY},{OTHER}")
    bundle, options = options_from(["--bundle=b", "--host=0.0.0.0", "--store-mb=5"])
    assert (bundle, options.keys, options.store_mb) == ("b", (KEY, OTHER), 5)
    assert KEY not in repr(options)
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ConfigError, match="16 characters"):
        options_from(["--bundle=b"])


@pytest.mark.parametrize("argument", ["--prot=1", "--port=x", "--queue=0", "--rate=-1"])
def test_bad_options_are_named(argument):
    with pytest.raises(ConfigError, match=argument.partition("=")[0]):
        options_from(["--bundle=b", argument])


def test_defaults_bind_this_machine_only():
    assert ServeOptions().host == "127.0.0.1"
