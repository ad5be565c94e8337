"""What every request passes: an id, the key, the rate, the body's size; and on the way out headers, log, metrics.

Plain ASGI, so that streams and disconnects pass through untouched.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_dppmg.serving.problems import MEDIA_TYPE, problem_body
from recbole_dppmg.serving.telemetry import Metrics, tell

_OPEN = ("/healthz", "/readyz")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI starts from an inline script and draws with inline styles; it shows only our own description
_DOCS_CSP = _CSP.replace("'self';", "'self' 'unsafe-inline';", 2).replace("img-src 'self'", "img-src 'self' data:")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_CALLERS = 10_000


class RateLimit:
    """A token bucket per caller: `rate` requests a second, twice that at once; 0 is no limit."""

    def __init__(self, rate: float):
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, at what time

    def wait(self, caller: str) -> float:
        """Seconds until this caller may ask; 0 when the request is counted and may pass."""
        if not self._rate:
            return 0.0
        now, most = time.monotonic(), max(1.0, 2 * self._rate)
        left, before = self._buckets.pop(caller, (most, now))
        left = min(most, left + (now - before) * self._rate)
        passes = left >= 1
        self._buckets[caller] = (left - passes, now)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (1 - left) / self._rate


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], rate: float, body_bytes: int, metrics: Metrics):
        self._app, self._metrics, self._body_bytes = app, metrics, body_bytes
        self._keys, self._rate = [key.encode() for key in keys], RateLimit(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 499  # the client went away before an answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                for name, value in _HEADERS.items():
                    out[name] = value
                out["content-security-policy"] = _DOCS_CSP if scope["path"] == "/docs" else _CSP
                out.setdefault("cache-control", "no-store")
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal:
                await _refuse(answer, request_id, *refusal)
            else:
                await self._app(scope, self._counted(receive), answer)
        finally:
            self._account(scope, request_id, status, time.perf_counter() - begun)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple | None:
        if scope["path"] in _OPEN:
            return None
        key = _presented(headers)
        if self._keys and not self._known(key):
            self._metrics.refused.labels("key").inc()
            told = "give the API key as X-API-Key, as a bearer token, or as the password of basic authentication"
            return 401, told, {"www-authenticate": 'Basic realm="recommendations", charset="UTF-8"'}
        caller = key.decode() if self._keys else (scope.get("client") or ("",))[0]
        if wait := self._rate.wait(caller):
            self._metrics.refused.labels("rate").inc()
            return 429, "too many requests; slow down", {"retry-after": str(int(wait) + 1)}
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._body_bytes:
            self._metrics.refused.labels("size").inc()
            return 413, self._size_told()
        return None

    def _size_told(self) -> str:
        return f"the body may have {self._body_bytes} bytes"

    def _known(self, key: bytes) -> bool:
        # all are compared, in constant time, so that time tells nothing
        return sum(hmac.compare_digest(key, known) for known in self._keys) > 0

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._body_bytes:
                self._metrics.refused.labels("size").inc()
                raise HTTPException(413, self._size_told())  # FastAPI lets this one pass
            return message

        return counted

    def _account(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        # the route, not the path: ids of users are nobody's business in a log, and unbounded as labels
        route = getattr(scope.get("route"), "path", None) or ("static" if "endpoint" in scope else "none")
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if route not in _OPEN:
            ms = round(1000 * seconds, 2)
            tell(logging.INFO, "request", request=request_id, method=method, route=route, status=status, ms=ms)


def _presented(headers: Headers) -> bytes:
    if key := headers.get("x-api-key"):
        return key.encode()
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


async def _refuse(send: Send, request_id: str, status: int, detail: str, more: dict[str, str] | None = None) -> None:
    body = problem_body(status, detail, request_id)
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body))} | (more or {})
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
