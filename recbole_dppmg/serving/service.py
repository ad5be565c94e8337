"""All that the routes share: the engine, the store, the queue and the thread that makes cards."""

from __future__ import annotations

import math
import threading
from urllib.parse import quote

from fastapi import Request

from recbole_dppmg.serving import schemas
from recbole_dppmg.serving.engine import CardOrder, Engine
from recbole_dppmg.serving.generator import Generator
from recbole_dppmg.serving.options import ServeOptions
from recbole_dppmg.serving.queue import JobQueue
from recbole_dppmg.serving.runner import Runner
from recbole_dppmg.serving.store import CardStore, Database, StoredCard
from recbole_dppmg.serving.telemetry import Metrics
from recbole_dppmg.types import token_names


class Service:
    """One server's parts."""

    def __init__(self, engine: Engine, options: ServeOptions):
        self.engine, self.options = engine, options
        self.metrics = Metrics()
        database = Database(options.store)
        self.store = CardStore(database, options.store_mb * 2**20)
        self.queue = JobQueue(database, engine.bundle_id, options.queue, options.deadline)
        generator = Generator(engine.folder, options.threads, options.limit)
        self.runner = Runner(list(engine.heads), self.queue, self.store, generator, self.metrics, options.batch)
        self.draining = threading.Event()

    def drain(self) -> None:
        """Take no more work; what is at hand is finished."""
        self.draining.set()
        self.runner.finish_batch()

    def item(self, row: int) -> schemas.Item:
        """An item as the wire has it."""
        return schemas.Item(**self.item_fields(row))

    def item_fields(self, row: int) -> dict:
        """The fields of an item."""
        item = self.engine.bundle.items[row]
        image = f"/v1/items/{quote(item.id, safe='')}/image" if item.image else None
        return {
            "id": item.id,
            "title": item.title or item.id,
            "year": item.year,
            "attributes": list(item.attributes),
            "image": image,
        }

    def card(self, order: CardOrder, stored: StoredCard | None) -> schemas.Card:
        """A card as far as it is made."""
        return schemas.Card(
            id=order.id, item=self.item(order.item), tokens=token_names(order.tokens), seed=order.seed,
            heads=self.engine.heads, complete=self.complete(stored),
            text=stored and stored.text, scores=stored and stored.scores,
            image=f"/v1/cards/{order.id}/image.png" if stored and stored.image else None,
        )  # fmt: skip

    def complete(self, stored: StoredCard | None) -> bool:
        """Whether nothing of it will change any more."""
        made = stored is not None and all(getattr(stored, modality) for modality in self.engine.heads)
        return made and stored.scores is not None

    def retry_after(self) -> str:
        """Seconds until a place in the queue is likely free."""
        return str(max(1, min(60, math.ceil(self.options.batch * self.runner.seconds_per_card))))


async def service_of(request: Request) -> Service:
    """The service behind a request; async, so that FastAPI spends no thread on it."""
    return request.app.state.service
