"""The evaluation of generation in words, for the terminal, and as a section of the report."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_dppmg.artifacts import write_text

CONDITIONS = (
    *("own", "before", "other", "other_before", "none", "none_before"),
    *("random", "history", "template", "nearest", "baseline"),
)
#: Measures of the tables: name, what it is called, decimals.
_SHOWN = (
    ("judge.{m}.top1", "top-1 of {group}", 3),
    ("judge.{m}.rank", "rank", 2),
    ("judge.{m}.gap", "swap gap", 4),
    ("personalization.{m}", "rewarded personalization", 3),
    ("fidelity.{m}", "fidelity", 3),
    ("diversity.{m}", "diversity", 3),
)
_QUALITY = {
    "text": (
        ("quality.text.names_item", "names item", 3),
        ("quality.text.attribute_precision", "attributes right", 3),
        ("quality.text.repetition", "repetition", 3),
        ("quality.text.distinct_2", "distinct-2", 3),
        ("quality.text.usr", "USR", 3),
        ("quality.text.div", "DIV", 3),
        ("quality.text.rouge_l", "ROUGE-L", 3),
        ("quality.text.bleu_4", "BLEU-4", 2),
    ),
    "image": (("quality.image.likeness", "likeness to catalogue", 3),),
}
_TOGETHER = (
    ("consistency.cosine", "cosine", 3),
    ("consistency.recall@1", "R@1 of {group}", 3),
    ("judge.consistency.cosine", "cosine, judge's space", 3),
)
_WIDE = 4
_START, _END = "<!-- evaluation -->", "<!-- /evaluation -->"
_PLACE = re.compile(r"(?=<h2>Learning</h2>|<h2>Codebook health</h2>|<h2>Time</h2>|</main>)")


def tables(metrics: Mapping[str, float], group: int) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """Title, columns and rows (condition, cells) of what was measured; a cell is `mean [low, high]`."""
    found = []
    for title, shown in (
        *((f"{m.capitalize()}s", (*_SHOWN, *_QUALITY[m])) for m in ("text", "image")),
        ("Texts and images together", _TOGETHER),
    ):
        modality = title[:-1].lower()
        columns = [(name.format(m=modality), told.format(group=group), n) for name, told, n in shown]
        columns = [c for c in columns if any(f"{c[0]}.{condition}" in metrics for condition in CONDITIONS)]
        rows = []
        for condition in CONDITIONS:
            cells = [_cell(metrics, f"{name}.{condition}", digits) for name, _, digits in columns]
            if any(cells):
                rows.append((condition, cells))
        if rows:
            found.append((title, [told for _, told, _ in columns], rows))
    return found


def _cell(metrics: Mapping[str, float], name: str, digits: int) -> str:
    if name not in metrics:
        return ""
    return f"{metrics[name]:.{digits}f} [{metrics[name + '.low']:.{digits}f}, {metrics[name + '.high']:.{digits}f}]"


def gains(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """What the reward phase changed, paired on the same cards: measure and cell, of the measures in the tables."""
    names = [name.format(m=m) for name, _, _ in (*_SHOWN, *_TOGETHER) for m in ("text", "image")]
    names += [name for shown in _QUALITY.values() for name, _, _ in shown]
    return [(n, _cell(metrics, f"gain.{n}", 4)) for n in dict.fromkeys(names) if f"gain.{n}" in metrics]


def table_in_words(metrics: Mapping[str, float], group: int) -> str:
    """The tables for a terminal, at most four columns side by side."""
    lines = []
    for title, columns, rows in tables(metrics, group):
        for start in range(0, len(columns), _WIDE):
            part = slice(start, start + _WIDE)
            lines += ["", f"{title:26}" + "".join(f"{told:>26}" for told in columns[part])]
            lines += [
                f"  {condition:24}" + "".join(f"{cell:>26}" for cell in cells[part])
                for condition, cells in rows
                if any(cells[part])
            ]
    if found := gains(metrics):
        lines += ["", "after the reward phase, less before"]
        lines += [f"  {name:40}{cell:>30}" for name, cell in found]
    tests = [(name, value) for name, value in metrics.items() if name.endswith(".sign_p")]
    lines += ["", *(f"sign test, {name.removesuffix('.sign_p')}: p = {value:.2g}" for name, value in tests)]
    return "\n".join(lines)


def insert_section(
    report: Path,
    metrics: Mapping[str, float],
    group: int,
    flags: Sequence[str],
    encoders: Mapping[str, str],
    examples: Sequence[Mapping[str, Any]],
) -> None:
    """Put the section into a run's report, in place of an earlier one; `group` users got each item."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("recbole_dppmg.evaluation"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = _inline
    section = environment.get_template("evaluation.html").render(
        tables=tables(metrics, group), gains=gains(metrics), metrics=metrics, flags=flags, examples=examples,
        group=group, encoders={modality: Path(name).name for modality, name in encoders.items()},
    )  # fmt: skip
    html = report.read_text(encoding="utf-8")
    html = re.sub(f"{_START}.*?{_END}\n?", "", html, flags=re.DOTALL)
    place = _PLACE.search(html)
    at = place.start() if place else len(html)
    write_text(report, f"{html[:at]}{_START}\n{section}\n{_END}\n{html[at:]}")


def _inline(image: Any, size: int = 96) -> str:
    """A PIL image as a data URL, at most `size` pixels wide and high."""
    small = image.copy()
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
