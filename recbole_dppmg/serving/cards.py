"""Cards: made at once when known, else queued, with jobs to follow."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from recbole_dppmg.serving import queue, schemas
from recbole_dppmg.serving.catalogue import matches
from recbole_dppmg.serving.engine import CardOrder
from recbole_dppmg.serving.problems import IMAGES, documented, problem_response
from recbole_dppmg.serving.service import Service, service_of

router = APIRouter(prefix="/v1", tags=["cards"], responses=documented(422))
_Service = Annotated[Service, Depends(service_of)]
_CardId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
_JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
_JobIds = Annotated[list[Annotated[str, Query(pattern="^[0-9a-f]{32}$")]], Query(min_length=1, max_length=32)]
_POLL_S = 0.2
_BEAT_S = 15.0
_FOLLOW_S = 600.0
_EVENTS = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.post("/cards", summary="Explain and picture an item for someone", response_model=schemas.Card,
             responses={202: {"model": schemas.Job, "description": "Being made; follow the job"},
                        **documented(404, 502, 503)})  # fmt: skip
async def make(service: _Service, wanted: schemas.CardWanted, request: Request) -> Response:
    """A card that is known is answered at once; else it is queued, and 202 tells the job. With `wait` the answer
    may take that long, and is the card when it is made in time."""
    order = await run_in_threadpool(_order, service, wanted)
    stored = service.store.get(order.id)
    if service.complete(stored):
        service.metrics.cards.labels("cached").inc()
        return JSONResponse(service.card(order, stored).model_dump())
    if service.draining.is_set():
        raise HTTPException(503, "the server is stopping", {"retry-after": "5"})
    try:
        job = await run_in_threadpool(service.queue.submit, order.id, order.request())
    except queue.QueueFull as error:
        service.metrics.cards.labels("refused").inc()
        return problem_response(request, 429, str(error), {"retry-after": service.retry_after()})
    service.metrics.cards.labels("queued").inc()
    service.runner.wake()
    job = await _wait(service, job, wanted.wait, request)
    if job.state == "done" and service.complete(stored := service.store.get(order.id)):
        return JSONResponse(service.card(order, stored).model_dump())
    if job.state == "failed":
        raise HTTPException(502, f"the card was not made: {job.error}")
    return JSONResponse(_told(service, job).model_dump(), 202, {"location": f"/v1/jobs/{job.id}", "retry-after": "1"})


@router.get("/cards/{card}", summary="A known card", responses=documented(404))
def known(service: _Service, card: _CardId) -> schemas.Card:
    stored = service.store.get(card)
    if stored is None:
        raise HTTPException(404, "no such card; ask for it at POST /v1/cards")
    return service.card(_order_of(card, stored.request), stored)


@router.get("/cards/{card}/image.{format}", summary="A card's image", response_class=Response,
            responses=IMAGES | documented(404) | {304: {"description": "Not changed"}})  # fmt: skip
def image(
    service: _Service, card: _CardId, format: Literal["png", "webp"],
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:  # fmt: skip
    stored = service.store.get(card)
    if stored is None or stored.image is None:
        raise HTTPException(404, "no such image; ask for the card at POST /v1/cards")
    etag = f'"{hashlib.sha256(stored.image).hexdigest()[:32]}-{format}"'
    headers = {"etag": etag, "cache-control": "private, max-age=86400"}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    content = stored.image if format == "png" else _webp(stored.image)
    return Response(content, headers=headers, media_type=f"image/{format}")


@router.get("/jobs/{job}", summary="How a card is coming along", responses=documented(404))
def job_state(service: _Service, job: _JobId) -> schemas.Job:
    return _told(service, _job(service, job))


@router.delete("/jobs/{job}", status_code=204, summary="Give a job's place up", responses=documented(404, 409))
def cancel(service: _Service, job: _JobId) -> None:
    _job(service, job)
    if not service.queue.cancel(job):
        raise HTTPException(409, "the job is over already")


@router.get("/events", summary="Follow jobs by server-sent events", response_class=StreamingResponse,
            responses=_EVENTS | documented(404))  # fmt: skip
async def events(service: _Service, job: _JobIds) -> StreamingResponse:
    """An event `job` with the job as JSON at each change, and `end` when all are over."""
    jobs = list(dict.fromkeys(job))
    for one in jobs:
        _job(service, one)
    return StreamingResponse(_follow(service, jobs), media_type="text/event-stream")


async def _follow(service: Service, jobs: list[str]) -> AsyncIterator[str]:
    told: dict[str, str] = {}
    begun = spoke = time.monotonic()
    while jobs and not service.draining.is_set() and time.monotonic() - begun < _FOLLOW_S:
        for one in list(jobs):
            job = service.queue.get(one)
            if job is None or job.over:
                jobs.remove(one)
            if job is None:
                continue
            data = _told(service, job).model_dump_json()
            if told.get(one) != data:
                told[one], spoke = data, time.monotonic()
                yield f"event: job\ndata: {data}\n\n"
        if time.monotonic() - spoke > _BEAT_S:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_POLL_S if jobs else 0)
    yield f"event: end\ndata: {json.dumps({'unfinished': jobs})}\n\n"


async def _wait(service: Service, job: queue.Job, seconds: float, request: Request) -> queue.Job:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not job.over and not service.draining.is_set():
        await asyncio.sleep(_POLL_S)
        job = service.queue.get(job.id) or job
        if await request.is_disconnected():
            await run_in_threadpool(service.queue.cancel, job.id)
            break
    if service.draining.is_set():  # what is being made now is worth waiting for
        while job.state == "running":
            await asyncio.sleep(_POLL_S)
            job = service.queue.get(job.id) or job
    return job


def _order(service: Service, wanted: schemas.CardWanted) -> CardOrder:
    engine = service.engine
    if wanted.user is not None:
        tokens = engine.tokens_of_user(wanted.user)
    elif wanted.history is not None:
        tokens = engine.tokens_of_history(wanted.history)
    else:
        tokens = engine.checked_tokens(wanted.tokens)
    return engine.order(wanted.item, tokens, wanted.seed)


def _order_of(card: str, request: dict) -> CardOrder:
    tokens = {m: tuple(codes) for m, codes in request["tokens"].items()}
    return CardOrder(card, request["item"], tokens, request["seed"])


def _job(service: Service, job: str) -> queue.Job:
    found = service.queue.get(job)
    if found is None:
        raise HTTPException(404, "no such job; it may have ended over an hour ago")
    return found


def _told(service: Service, job: queue.Job) -> schemas.Job:
    card = service.card(_order_of(job.card, job.request), service.store.get(job.card))
    return schemas.Job(id=job.id, state=job.state, position=job.position, error=job.error, card=card)


def _webp(png: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png), formats=["PNG"]).save(buffer, format="WEBP", quality=90)
    return buffer.getvalue()
