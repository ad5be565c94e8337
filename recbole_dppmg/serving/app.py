"""The server: routes over the engine, the store and the queue."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from recbole_dppmg import __version__
from recbole_dppmg.serving import cards, catalogue, health, problems
from recbole_dppmg.serving.engine import Engine
from recbole_dppmg.serving.guard import Guard
from recbole_dppmg.serving.options import ServeOptions
from recbole_dppmg.serving.service import Service
from recbole_dppmg.serving.telemetry import tell

PAGE = Path(__file__).parent / "page"

_ABOUT = """\
Recommendations with the tokens of a user's taste, and cards that explain and picture them.

Users and items are addressed by their ids in the dataset; no path or URL is ever accepted. Errors are problem
details (RFC 9457). Where the server has an API key, give it as `X-API-Key`, as a bearer token, or as the password
of basic authentication.
"""


def create_app(engine: Engine, options: ServeOptions) -> tuple[ASGIApp, Service]:
    """The ASGI application, and the service behind it, which the application starts and stops."""
    service = Service(engine, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.runner.start()
        tell(logging.INFO, "ready", bundle=engine.bundle_id, users=len(engine.bundle.user_rows))
        yield
        service.drain()
        await run_in_threadpool(service.runner.stop, options.drain)
        tell(logging.INFO, "stopped")

    app = FastAPIOffline(
        title="recbole-dppmg",
        version=__version__,
        description=_ABOUT,
        redoc_url=None,
        lifespan=lifespan,
        swagger_ui_parameters={"syntaxHighlight": False, "tryItOutEnabled": True},
    )
    app.state.service = service
    problems.install(app)
    for part in (health, catalogue, cards):
        app.include_router(part.router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    _describe(app, bool(options.keys))
    guarded = Guard(app, options.keys, options.requests_per_second, options.body_kb * 1024, service.metrics)
    return guarded, service


def _describe(app: FastAPI, locked: bool) -> None:
    """Complete the OpenAPI description: the shape of problems, what any route may answer, and the key."""
    made = app.openapi

    def described() -> dict:
        if app.openapi_schema is None:
            schema = made()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = problems.Problem.model_json_schema()
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    if "requestBody" in operation:
                        operation["responses"] |= {str(k): v for k, v in problems.documented(400).items()}
                    if path not in ("/healthz", "/readyz"):
                        operation["responses"] |= {str(k): v for k, v in problems.documented(401, 413, 429).items()}
            if locked:
                components["securitySchemes"] = {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "basic": {"type": "http", "scheme": "basic"},
                }
                schema["security"] = [{"key": []}, {"bearer": []}, {"basic": []}]
                for path in ("/healthz", "/readyz"):
                    for operation in schema["paths"][path].values():
                        operation["security"] = []
        return app.openapi_schema

    app.openapi = described
