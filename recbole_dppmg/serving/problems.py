"""Errors over HTTP, as problem details (RFC 9457)."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from recbole_dppmg.errors import DPPMGError
from recbole_dppmg.serving.engine import UnknownUser
from recbole_dppmg.serving.telemetry import tell

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong, and what to do."""

    type: str = Field("about:blank", description="about:blank: the status says it all")
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["user '99999' is not among the 943 users of this bundle"])
    request_id: str | None = Field(None, description="as in the header X-Request-ID and in the server's log")


def problem_body(status: int, detail: str, request_id: str | None) -> bytes:
    """A problem as JSON."""
    title = HTTPStatus(status).phrase
    return json.dumps(Problem(title=title, status=status, detail=detail, request_id=request_id).model_dump()).encode()


def problem_response(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """A problem as a response."""
    request_id = request.scope.get("state", {}).get("request_id")
    return Response(problem_body(status, detail, request_id), status, headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses for OpenAPI."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


#: A 200 that is a picture.
IMAGES: dict[int | str, dict[str, Any]] = {
    200: {"content": {f"image/{t}": {"schema": {"type": "string", "format": "binary"}} for t in ("png", "webp")}}
}


def install(app: FastAPI) -> None:
    """Answer every error with a problem."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return problem_response(request, error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        told = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:8]]
        return problem_response(request, 422, "; ".join(told))

    @app.exception_handler(DPPMGError)
    async def refused(request: Request, error: DPPMGError) -> Response:
        return problem_response(request, 404 if isinstance(error, UnknownUser) else 422, str(error))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        request_id = request.scope.get("state", {}).get("request_id")
        tell(logging.ERROR, "request failed", request=request_id, error=f"{type(error).__name__}: {error}")
        return problem_response(request, 500, "the server failed; its log tells why, under this request's id")
