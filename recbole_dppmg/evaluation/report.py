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
_MEASURED = ("quantizer.", "injection.", "reward.", "joint.")
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
    path: Path,
    about: Mapping[str, str],
    metrics: Mapping[str, float],
    history: Mapping[str, Sequence[tuple[int, float]]],
    bundle: Bundle | None = None,
    cards: Sequence[Card] = (),
) -> None:
    """Write `report.html`, self-contained: images inline, no scripts, nothing fetched.

    Args:
        about: `id`, `model` and `dataset` of the run, and where there are generators, `text_generator` and
            `image_generator`.
        history: values by step, as the tracker has them.
        bundle, cards: of a DPPMG run; a card's image is relative to the report.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("recbole_dppmg.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html").render(
        about=about,
        ranking=ranking_table(metrics, about["model"]),
        quantizer=quantizer_table(metrics),
        curves=[_curve(*curve, history[curve[1]]) for curve in _curves(history)],
        joint={name: value for name, value in metrics.items() if name.startswith("joint.")},
        times={n.removeprefix("time.").removesuffix("_s"): v for n, v in metrics.items() if n.startswith("time.")},
        kept=metrics.get("quantizer.kept.ndcg@20"),
        glossary=_glossary(bundle) if bundle else {},
        users=_users(bundle, cards, path.parent) if bundle else [],
    )
    write_text(path, html)


def model_card(about: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """The bundle's README.md: what it is, how to load it, and its measured numbers."""
    columns, rows = ranking_table(metrics, about["model"])
    lines = [
        f"# DPPMG on {about['dataset']}",
        "",
        f"Run `{about['id']}` of recbole-dppmg: preferences as tokens, recommendations with texts and images.",
        "",
        "```python",
        "from recbole_dppmg.bundle import Bundle",
        "",
        'bundle = Bundle.from_pretrained("this/folder")',
        "users = torch.tensor([bundle.row_of(user_id)])",
        "items, scores = bundle.space.recommend(users, k=10)",
        "```",
        "",
        "Test split, every item ranked:",
        "",
        f"| model | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {model} | {' | '.join(f'{value:.4f}' for value in values)} |" for model, values in rows),
        "",
        *(f"- `{name}`: {value:.4g}" for name, value in sorted(metrics.items()) if name.startswith(_MEASURED)),
        "",
    ]
    return "\n".join(lines)


def ranking_table(metrics: Mapping[str, float], model: str) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Metric names, and per model its test values, best NDCG first; `model` is the run's own."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        parts = name.split(".")
        if parts[0] == "ranking" and "test" in parts:
            rows.setdefault(model if parts[1] == "test" else parts[1], {})[parts[-1]] = value
    columns = [name for name in next(iter(rows.values()), {}) if all(name in row for row in rows.values())]
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


def _curves(history: Mapping[str, Sequence]) -> list[tuple[str, str, str]]:
    known = [curve for curve in _CURVES if history.get(curve[1])]
    losses = [name for name in history if name.endswith(".loss") and name not in {curve[1] for curve in _CURVES}]
    return known + [(name.removesuffix(".loss"), name, "loss by epoch") for name in losses]


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
            row = bundle.row_of(card.user)
            history = [bundle.items[item] for item in bundle.recent[row][:_HISTORY]]
            users[card.user] = {
                "id": card.user,
                "size": int(bundle.space.history.sizes[row]),
                "tokens": card.tokens,
                "cards": [],
                "history": [{"title": item.title, "image": inline(item.image, 64)} for item in history],
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
