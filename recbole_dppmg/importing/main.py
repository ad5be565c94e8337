"""The verb `import`: `import csv --interactions F [--items F] [--images DIR]` and `import mmrec DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.importing.delimited import import_delimited
from recbole_dppmg.importing.mmrec import import_mmrec

_COLUMNS = ("user", "item", "rating", "time", "title", "image")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"import: {message}; see import --help")


def main(argv: Sequence[str]) -> int:
    """Write a dataset in RecBole's layout and tell what was taken from where.

    Raises:
        ConfigError, DataError: naming the argument, or the file, row and column at fault.
    """
    parser = _Parser(prog="run_dppmg.py import", description="Make a dataset of other files.", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="csv|mmrec")
    delimited = kinds.add_parser("csv", help="tables with a header, and a folder of images", allow_abbrev=False)
    delimited.add_argument("--interactions", type=Path, required=True, help="a row for each: user, item, rating, time")
    delimited.add_argument("--items", type=Path, help="a row for each: item, title, other texts, image")
    delimited.add_argument("--images", type=Path, help="folder of files named by item id, or by the image column")
    for column in _COLUMNS:
        delimited.add_argument(f"--{column}-column", help="guessed and shown if not given; - for none")
    delimited.add_argument("--text-columns", help="columns of item text, separated by commas; guessed if not given")
    delimited.add_argument("--delimiter", help="guessed if not given")
    delimited.add_argument("--dry-run", action="store_true", help="show what would be taken; write nothing")
    mmrec = kinds.add_parser("mmrec", help="a dataset in MMRec's layout, with its features", allow_abbrev=False)
    mmrec.add_argument("source", type=Path, metavar="DIR", help="folder with .inter, image_feat.npy, text_feat.npy")
    for kind in (delimited, mmrec):
        kind.add_argument("--name", help="of the dataset [that of the folder]")
        kind.add_argument("--output", type=Path, default=Path("dataset"), help="folder of datasets [%(default)s]")
    given = parser.parse_args(argv)
    if given.kind == "mmrec":
        lines = import_mmrec(given.source, given.output, given.name or given.source.resolve().name)
    else:
        columns = {column: getattr(given, f"{column}_column") for column in _COLUMNS}
        columns |= {"text": given.text_columns, "delimiter": given.delimiter}
        name = given.name or given.interactions.resolve().parent.name
        lines = import_delimited(
            given.interactions, given.items, given.images, given.output, name, columns, given.dry_run
        )
    print("\n".join(lines))
    return 0
