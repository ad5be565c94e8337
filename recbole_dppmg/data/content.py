"""Item content: titles, texts and attributes from a RecBole `.item` file.

RecBole's own reader turns titles such as `NA` or `None` into padding and stumbles over quotes, so the
content columns are read here, line by line, keyed by the item's token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.settings import ContentSettings
from recbole_dppmg.types import Item

_TITLE_COLUMNS = ("title", "movie_title", "name", "item_name", "item_title")
_ATTRIBUTE_COLUMNS = ("genres", "genre", "class", "categories", "category", "tags")
_YEAR_COLUMNS = ("release_year", "year")
_INVERTED = re.compile(r"^(?P<name>.+), (?P<article>The|A|An|Le|La|Les|Il|El|Das|Der|Die)(?P<rest>( \(.*\))?)$")
_YEAR_IN_TITLE = re.compile(r"^(?P<name>.+?) \((?P<year>\d{4})\)$")


def read_items(item_file: Path, ids: Sequence[str], settings: ContentSettings, id_field: str = "item_id") -> list[Item]:
    """One `Item` per id, in the order of `ids`; an id without a row gets an item without text.

    Raises:
        ConfigError: a column that a key names is not in the file.
        DataError: the file's header or a row is malformed.
    """
    if not item_file.is_file():
        return [Item(id=i, title="", text="") for i in ids]
    header, rows = _read_rows(item_file, id_field)
    columns = _choose_columns(item_file, header, settings)
    return [_item(i, rows.get(i, {}), columns, settings) for i in ids]


def _read_rows(path: Path, id_field: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The columns with their RecBole types, and the rows by item id."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    header = dict(part.partition(":")[::2] for part in lines[0].split("\t")) if lines else {}
    if id_field not in header:
        raise DataError(f"{path}: its first line has no column '{id_field}:token'; columns found: {', '.join(header)}")
    rows = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(
                f"{path}: row {number} has {len(cells)} columns, the header has {len(header)}; mend the row"
            )
        row = dict(zip(header, cells, strict=True))
        rows[row[id_field]] = row
    return header, rows


def _choose_columns(path: Path, header: Mapping[str, str], settings: ContentSettings) -> dict[str, str | list | None]:
    def column(key: str, candidates: Sequence[str]) -> str | None:
        wanted = getattr(settings, key)
        if wanted and wanted not in header:
            raise ConfigError(f"{key}: column '{wanted}' is not in {path}; it has: {', '.join(header)}")
        return wanted or next((c for c in candidates if c in header), None)

    texts = settings.text_fields
    for name in texts or ():
        if name not in header:
            raise ConfigError(f"text_fields: column '{name}' is not in {path}; it has: {', '.join(header)}")
    return {
        "title": column("title_field", _TITLE_COLUMNS),
        "attributes": column("attribute_field", _ATTRIBUTE_COLUMNS),
        "year": column("year_field", _YEAR_COLUMNS),
        "image": settings.image_field if settings.image_field in header else None,
        "texts": texts or [name for name, kind in header.items() if kind == "token_seq"],
    }


def _item(item_id: str, row: Mapping[str, str], columns: dict, settings: ContentSettings) -> Item:
    def cell(name: str) -> str:
        return row.get(columns[name] or "", "").strip()

    title, year = _title_and_year(cell("title"), cell("year"))
    attributes = tuple(a for a in re.split(r"[,|;]\s*|\s+", cell("attributes")) if a and not a.startswith("("))
    head = f"{title} ({year})" if title and year else title
    known = {columns["title"], columns["year"], columns["attributes"]}
    others = [row[name].strip() for name in columns["texts"] if name not in known and row.get(name, "").strip()]
    listed = columns["attributes"] in columns["texts"]
    parts = [head, ", ".join(attributes) if listed else "", *others]
    text = ". ".join(part.rstrip(".") for part in parts if part)
    image = Path(cell("image")) if columns["image"] and cell("image") else None
    return Item(item_id, title, text + "." if text else "", attributes, year, image)


def _title_and_year(title: str, year: str) -> tuple[str, int | None]:
    """`Usual Suspects, The (1995)` -> `The Usual Suspects`, 1995: as a person would write it."""
    if found := _YEAR_IN_TITLE.match(title):
        title, year = found["name"], year or found["year"]
    if found := _INVERTED.match(title):
        title = f"{found['article']} {found['name']}{found['rest']}"
    return title, int(year) if year.isdecimal() else None
