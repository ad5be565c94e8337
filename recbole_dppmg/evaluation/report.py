"""The report: one HTML file that opens from disk and shows what a run learned and made."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recbole_dppmg.artifacts import write_text
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.data.images import open_image
from recbole_dppmg.evaluation.cards import Card

_CURVES = (
    ("Preference", "preference.loss", "loss by epoch"),
    ("Injection, text", "injection.text.loss", "next-token loss by step"),
    ("Injection, image", "injection.image.loss", "noise-prediction loss by step"),
    ("Reward, text", "reward.text.total", "total reward by step"),
    ("Reward, image", "reward.image.total", "total reward by step"),
)
_HISTORY = 8
_THUMBNAIL = 128


@dataclass
class Curve:
    """A line drawn as SVG in a 300 x 120 box."""

    title: str
    caption: str
    points: str
    first: float
    last: float


def write_report(
    path: Path, bundle: Bundle, cards: Sequence[Card], metrics: Mapping[str, float],
    history: Mapping[str, Sequence[tuple[int, float]]], run: Mapping[str, str],
) -> None:
    """Write `report.html`, self-contained: images inline, no scripts, nothing fetched."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("recbole_dppmg.evaluation"), autoescape=True, trim_blocks=True)
    html = environment.get_template("report.html").render(
        run=run,
        ranking=ranking_table(metrics),
        quantizer=quantizer_table(metrics),
        curves=[_curve(*curve, history[curve[1]]) for curve in _CURVES if history.get(curve[1])],
        joint={name: value for name, value in metrics.items() if name.startswith("joint.")},
        times={n.removeprefix("time.").removesuffix("_s"): v for n, v in metrics.items() if n.startswith("time.")},
        kept=metrics.get("quantizer.kept.ndcg@20"),
        glossary=_glossary(bundle),
        users=_users(bundle, cards, path.parent),
    )
    write_text(path, html)


def ranking_table(metrics: Mapping[str, float]) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Metric names, and per model its test values, best NDCG first."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        parts = name.split(".")
        if parts[0] == "ranking" and "test" in parts:
            rows.setdefault("DPPMG" if parts[1] == "test" else parts[1], {})[parts[-1]] = value
    columns = [c for c in ("recall@10", "ndcg@10", "recall@20", "ndcg@20", "mrr@10", "hit@10", "precision@10")
               if all(c in row for row in rows.values())]
    order = sorted(rows, key=lambda model: -rows[model].get("ndcg@20", rows[model].get("ndcg@10", 0)))
    return columns, [(model, [rows[model][c] for c in columns]) for model in order]


def quantizer_table(metrics: Mapping[str, float]) -> list[tuple[str, int, float, float]]:
    """(modality, level, utilization, perplexity / K) per codebook."""
    rows = []
    for name, value in metrics.items():
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "quantizer" and parts[2] == "utilization":
            rows.append((parts[1], int(parts[3]), value, metrics[f"quantizer.{parts[1]}.perplexity.{parts[3]}"]))
    return rows


def _curve(title: str, name: str, caption: str, history: Sequence[tuple[int, float]]) -> Curve:
    values = [value for _, value in history]
    low, high = min(values), max(values)
    width, height, spread = 300 / max(1, len(values) - 1), 108, (high - low) or 1.0
    points = " ".join(f"{n * width:.1f},{6 + (high - v) / spread * height:.1f}" for n, v in enumerate(values))
    return Curve(title, caption, points, values[0], values[-1])


def _glossary(bundle: Bundle) -> dict[str, list[tuple[str, list[str], list[str]]]]:
    """First-level tokens of each modality: name, words, items."""
    rows: dict[str, list] = {}
    for name, entry in bundle.glossary.items():
        modality, level, _ = name.strip("<>").split("_")
        if level == "0" and (entry["words"] or entry["items"]):
            rows.setdefault(modality, []).append((name, entry["words"][:6], entry["items"][:4]))
    return rows


def _users(bundle: Bundle, cards: Sequence[Card], folder: Path) -> list[dict]:
    users: dict[str, dict] = {}
    for card in cards:
        if card.user not in users:
            rows = bundle.history[bundle.row_of(card.user)]
            history = [bundle.items[row] for row in rows[-_HISTORY:]]
            users[card.user] = {
                "id": card.user, "size": len(rows), "tokens": card.tokens, "cards": [],
                "history": [{"title": item.title, "image": inline(item.image, 64)} for item in reversed(history)],
                "words": {m: _words(bundle, names) for m, names in card.tokens.items()},
            }
        item = bundle.items[bundle.item_rows[card.item]]
        generated = inline(folder / card.image, _THUMBNAIL * 2) if card.image else None
        users[card.user]["cards"].append(
            {"card": card, "item": item, "generated": generated, "catalogue": inline(item.image, _THUMBNAIL)}
        )
    return list(users.values())


def _words(bundle: Bundle, names: Sequence[str]) -> list[str]:
    words = [word for name in names for word in bundle.glossary.get(name, {}).get("words", [])[:3]]
    return list(dict.fromkeys(words))[:6]


def inline(path: Path | None, size: int) -> str | None:
    """An image as a data URL, at most `size` pixels wide and high."""
    if path is None:
        return None
    image = open_image(path)
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
