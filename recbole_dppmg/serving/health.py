"""Whether the server lives, whether it can serve, and its metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from recbole_dppmg.serving.schemas import Health
from recbole_dppmg.serving.service import Service, service_of

router = APIRouter(tags=["health"])
_Service = Annotated[Service, Depends(service_of)]


@router.get("/healthz", summary="The process lives")
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", summary="Ready to serve", responses={503: {"model": Health, "description": "Stopping"}})
async def readyz(service: _Service) -> Health:
    """Recommendations are served while the status is `ready` or `degraded`."""
    trouble = service.runner.trouble
    status = "draining" if service.draining.is_set() else "degraded" if any(trouble.values()) else "ready"
    health = Health(
        status=status, generators={m: "failing" if why else "ok" for m, why in trouble.items()},
        queued=service.queue.depth(),
    )  # fmt: skip
    return JSONResponse(health.model_dump(), 503) if status == "draining" else health


@router.get("/metrics", summary="For Prometheus", response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
def metrics(service: _Service) -> Response:
    cards, size = service.store.usage()
    service.metrics.store_cards.set(cards)
    service.metrics.store_bytes.set(size)
    service.metrics.depth.set(service.queue.depth())
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
