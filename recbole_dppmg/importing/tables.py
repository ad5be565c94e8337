"""Reading tables of unknown make: delimiter and columns are guessed, shown, and may be given instead."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from recbole_dppmg.errors import ConfigError, DataError
from recbole_dppmg.keys import nearest

_SAMPLE = 65_536
_DELIMITERS = ",\t;|"

#: What a column holds: names that it goes by, the likeliest first, in lower case without punctuation.
NAMES: dict[str, tuple[str, ...]] = {
    "user": (
        "userid", "user", "uid", "userindex", "reviewerid", "customerid", "memberid", "visitorid", "accountid",
        "customer", "reviewer", "member", "visitor", "account",
    ),
    "item": (
        "itemid", "item", "iid", "itemindex", "movieid", "productid", "parentasin", "asin", "bookid", "isbn", "trackid",
        "songid", "newsid", "articleid", "videoid", "gameid", "recipeid", "businessid", "adid", "sku", "product", "id",
    ),
    "rating": ("rating", "ratings", "score", "stars", "overall", "preference", "label", "feedback"),
    "time": (
        "timestamp", "time", "unixreviewtime", "datetime", "date", "createdat", "eventtime", "reviewtime", "orderdate",
        "ts",
    ),
    "title": ("title", "name", "itemname", "itemtitle", "movietitle", "productname", "booktitle", "headline"),
    "image": ("image", "imagepath", "imagefile", "img", "picture", "poster", "cover", "photo", "filename"),
    "text": (
        "description", "overview", "plot", "summary", "abstract", "text", "content", "synopsis", "genres", "genre",
        "categories", "category", "tags", "brand", "author", "authors", "artist", "director", "year", "releaseyear",
    ),
}  # fmt: skip


def read_table(path: Path, delimiter: str | None = None) -> pd.DataFrame:
    """A delimited file with a header as text cells, empty where there is nothing.

    Raises:
        DataError: the file is missing, not UTF-8, has no rows, or has one of more cells than the header.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = delimiter or _delimiter(file.readline())
        table = pd.read_csv(
            path, sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False,
            on_bad_lines="error", engine="c",
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (ValueError, csv.Error, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: cannot be read as a table ({error}); mend the row, or give --delimiter") from error
    if not len(table):
        raise DataError(f"{path}: has no rows below its header")
    table.columns = [str(name).split(":")[0].strip() for name in table.columns]  # RecBole's types may be there
    return table.fillna("")


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def choose_columns(
    path: Path, columns: Sequence[str], wanted: Sequence[str], needed: Sequence[str], given: Mapping[str, str | None]
) -> dict[str, str]:
    """Which column holds what: as given, else the first by name.

    Args:
        wanted: keys of `NAMES`.
        needed: those of them that must be found.
        given: columns by key; `-` says that there is none.

    Raises:
        ConfigError: a given column is not there.
        DataError: a needed one cannot be guessed.
    """
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(columns)}
    found: dict[str, str] = {}
    for key in wanted:
        name = given.get(key)
        if name and name != "-" and name not in columns:
            raise ConfigError(f"--{key}-column={name}: {path} has no such column{nearest(name, columns)}")
        guess = next((plain[n] for n in NAMES[key] if n in plain and plain[n] not in found.values()), None)
        if name != "-" and (name or guess):
            found[key] = name or guess
        elif key in needed:
            raise DataError(f"{path}: which column holds the {key}? give --{key}-column, one of {', '.join(columns)}")
    return found


def text_columns(path: Path, columns: Sequence[str], given: str | None, taken: Mapping[str, str]) -> list[str]:
    """Columns of item text beside the title: as given, separated by commas, else by name.

    Raises:
        ConfigError: a given column is not there.
    """
    if given:
        names = [name.strip() for name in given.split(",") if name.strip() not in ("", "-")]
        for name in names:
            if name not in columns:
                raise ConfigError(f"--text-columns={given}: {path} has no column '{name}'{nearest(name, columns)}")
        return names
    free = [name for name in columns if name not in taken.values()]
    return [name for name in free if re.sub(r"[^a-z0-9]", "", name.lower()) in NAMES["text"]]


def numbers(path: Path, column: str, cells: pd.Series) -> pd.Series:
    """Cells as numbers in text.

    Raises:
        DataError: naming the first row that is not a finite number.
    """
    values = pd.to_numeric(cells, errors="coerce")
    _check(path, column, cells, values.isna() | values.abs().eq(float("inf")), "a number")
    return cells.str.strip()


def times(path: Path, column: str, cells: pd.Series) -> pd.Series:
    """Cells as seconds since 1970, as text: from seconds, milli-, micro- or nanoseconds, or dates (UTC where they do
    not say).

    Raises:
        DataError: naming the first row that is no time.
    """
    values = pd.to_numeric(cells, errors="coerce")
    if values.isna().any():
        values = pd.to_datetime(cells, errors="coerce", utc=True, format="mixed")
        _check(path, column, cells, values.isna(), "a time")
        values = values.astype("datetime64[ns, UTC]").astype("int64") / 1e9
    else:
        _check(path, column, cells, values.abs().eq(float("inf")), "a time")
        # seconds of our age have ten digits
        values = values / next((unit for unit in (1e9, 1e6, 1e3) if values.abs().max() > 1e8 * unit), 1)
    return values.map(lambda value: f"{value:.3f}".rstrip("0").rstrip("."))


def _check(path: Path, column: str, cells: pd.Series, bad: pd.Series, expected: str) -> None:
    if bad.any():
        row = int(bad.idxmax())
        raise DataError(f"{path}: row {row + 2}, column '{column}': '{cells[row]}' is not {expected}")
