"""What the server tells about itself: Prometheus metrics and one JSON line per event on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

log = logging.getLogger("recbole_dppmg.serving")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def named(kind, name, told, labels=(), **more):
            return kind(f"dppmg_{name}", told, labels, registry=self.registry, **more)

        self.requests = named(Counter, "http_requests", "Requests answered.", ("method", "route", "status"))
        self.seconds = named(
            Histogram, "http_request_seconds", "Time to answer, by route.", ("route",), buckets=_SECONDS
        )
        self.refused = named(Counter, "http_refused", "Requests refused before their route.", ("reason",))
        self.cards = named(
            Counter,
            "cards",
            "Cards asked for, by what became of them: cached, queued, refused, made, failed.",
            ("outcome",),
        )
        self.batch_size = named(
            Histogram, "batch_cards", "Cards per call of a generator.", ("task",), buckets=(1, 2, 4, 8, 16, 32)
        )
        self.batch_seconds = named(
            Histogram, "batch_seconds", "Time per call of a generator.", ("task",), buckets=_BATCH_SECONDS
        )
        self.lost = named(Counter, "generator_lost", "Times the generators' process hung or died.")
        self.depth = named(Gauge, "queue_jobs", "Jobs that wait.")
        self.degraded = named(Gauge, "generator_degraded", "1 where the last attempt failed.", ("modality",))
        self.store_bytes = named(Gauge, "store_bytes", "Bytes of cards in the store.")
        self.store_cards = named(Gauge, "store_cards", "Cards in the store.")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        event = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        event |= getattr(record, "fields", {})
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)


def tell(level: int, event: str, **fields) -> None:
    """Log an event with its fields."""
    log.log(level, event, extra={"fields": fields})


def log_json() -> None:
    """Let this package's and uvicorn's events go to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("recbole_dppmg.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
