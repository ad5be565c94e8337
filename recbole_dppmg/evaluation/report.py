"""The report: one HTML file that opens from disk and shows what a run learned and made."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_dppmg.artifacts import write_text
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.data.images import open_image
from recbole_dppmg.evaluation.cards import Card

if TYPE_CHECKING:
    from PIL.Image import Image

_CURVES = (
    ("Preference", "preference.loss", "loss by epoch"),
    ("Injection, text", "injection.text.loss", "next-token loss by step"),
    ("Injection, image", "injection.image.loss", "noise-prediction loss by step"),
    ("Reward, text", "reward.text.total", "total reward by step"),
    ("Reward, image", "reward.image.total", "total reward by step"),
)
_MEASURED = ("quantizer.", "injection.", "reward.", "joint.")
_FIRST = ("ndcg", "recall", "mrr", "hit", "precision")  # of the ranking table's columns
_HISTORY = 8
_THUMBNAIL = 128


@dataclass
class Curve:
    """A line drawn as SVG in a 300 x 120 box: the values as they are, and their moving average."""

    title: str
    caption: str
    points: str
    smooth: str
    first: float
    last: float


def write_report(
    path: Path,
    about: Mapping[str, str],
    metrics: Mapping[str, float],
    history: Mapping[str, Sequence[tuple[int, float]]],
    bundle: Bundle | None = None,
    cards: Sequence[Card] = (),
    same_item: Sequence[tuple[Card, Image | None]] = (),
) -> None:
    """Write `report.html`, self-contained: images inline, no scripts, nothing fetched.

    Args:
        about: `id`, `model` and `dataset` of the run, and where there are generators, `text_generator` and
            `image_generator`.
        history: values by step, as the tracker has them.
        bundle, cards: of a DPPMG run; a card's image is relative to the report.
        same_item: cards of one item for several users, with their images.
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
        curves=_curves(history),
        joint={name: value for name, value in metrics.items() if name.startswith("joint.")},
        times={n.removeprefix("time.").removesuffix("_s"): v for n, v in metrics.items() if n.startswith("time.")},
        metrics=metrics,
        glossary=_glossary(bundle) if bundle else {},
        users=_users(bundle, cards, path.parent) if bundle else [],
        same_item=[(card, _data_url(image, _THUMBNAIL) if image else None) for card, image in same_item],
    )
    write_text(path, html)


def model_card(about: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """The bundle's README.md: what it is, how to load it, and its measured numbers."""
    columns, rows = ranking_table(metrics, about["model"])
    lines = [
        f"# DPPMG on {about['dataset']}",
        "",
        f"Run `{about['id']}` of recbole-dppmg: preferences as tokens, recommendations with texts and images.",
        *([about["note"]] if about.get("note") else []),
        "",
        "```python",
        "import torch",
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
    shared = set.intersection(*map(set, rows.values())) if rows else set()
    first = {name: n for n, name in enumerate(_FIRST)}
    columns = sorted(shared, key=lambda name: (first.get(name.split("@")[0], len(first)), len(name), name))
    order = sorted(rows, key=lambda model: -rows[model].get("ndcg@20", rows[model].get("ndcg@10", 0)))
    return columns, [(model, [rows[model][c] for c in columns]) for model in order]


def quantizer_table(metrics: Mapping[str, float]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Per modality, coarse to fine: utilization and perplexity / K of each codebook."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for name, value in metrics.items():
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "quantizer" and parts[2] == "utilization":
            perplexity = metrics[f"quantizer.{parts[1]}.perplexity.{parts[3]}"]
            found.setdefault(parts[1], {})[int(parts[3])] = (value, perplexity)
    return [(m, [levels[n] for n in sorted(levels)]) for m, levels in sorted(found.items(), reverse=True)]


def _curves(history: Mapping[str, Sequence[tuple[int, float]]]) -> list[Curve]:
    """What was learned: DPPMG's losses and rewards, their terms, and the losses of models beside it."""
    known = [curve for curve in _CURVES if history.get(curve[1])]
    drawn = {name for _, name, _ in known}
    terms = [n for n in history if n.startswith("reward.") and n not in drawn]
    known += [(n.split(".")[2].capitalize(), n, f"of the {n.split('.')[1]}s, by step") for n in sorted(terms)]
    losses = [n for n in history if n.endswith(".loss") and n not in drawn and len(history[n]) > 1]
    known += [(name.removesuffix(".loss"), name, "loss by epoch") for name in losses]
    return [_curve(title, caption, [value for _, value in history[name]]) for title, name, caption in known]


def _curve(title: str, caption: str, values: Sequence[float]) -> Curve:
    array = np.asarray(values)
    low, spread = array.min(), np.ptp(array) or 1.0
    window = max(1, len(array) // 10)
    near = np.convolve(
        np.pad(array, (window // 2, (window - 1) // 2), mode="edge"), np.full(window, 1 / window), "valid"
    )

    def line(table: np.ndarray) -> str:
        x = np.linspace(0, 300, len(table))
        return " ".join(f"{a:.1f},{114 - 108 * (b - low) / spread:.1f}" for a, b in zip(x, table, strict=True))

    return Curve(title, caption, line(array), line(near), near[0], near[-1])


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
    return _data_url(open_image(path), size)


def _data_url(image: Image, size: int) -> str:
    image = image.copy()
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
