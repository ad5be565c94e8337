"""What the command line does with a bundle: `tokens` shows a user's tokens, `generate` makes cards."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.errors import ConfigError
from recbole_dppmg.types import token_names

_BUNDLE = "outputs/latest/bundle"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"{self.prog.split()[-1]}: {message}; see {self.prog.split()[-1]} --help")


def parser_of(verb: str, told: str) -> argparse.ArgumentParser:
    """The parser of a verb that works on a bundle; a bad argument is a ConfigError."""
    parser = _Parser(prog=f"run_dppmg.py {verb}", description=told, allow_abbrev=False)
    parser.add_argument("--bundle", default=_BUNDLE, help="a bundle's folder or hub id [%(default)s]")
    return parser


def tokens(argv: Sequence[str]) -> int:
    """Print a user's preference tokens, each with the words and items that it stands for.

    Raises:
        BundleError, DataError: the bundle cannot be read, or does not know the user.
    """
    parser = parser_of("tokens", "Show what a user's preference tokens stand for.")
    parser.add_argument("--user", required=True, help="the user's id in the dataset")
    given = parser.parse_args(argv)
    bundle = Bundle.from_pretrained(given.bundle)
    row = bundle.row_of(given.user)
    print(f"user {given.user}: {int(bundle.space.history.sizes[row])} items in training")
    for modality, names in token_names(bundle.space.user_tokens(row)).items():
        print(f"\n{modality}")
        for name in names:
            entry = bundle.glossary.get(name, {"words": [], "items": []})
            print(f"  {name:14} {', '.join(entry['words'][:6]) or '-'}")
            print(f"  {'':14} {' · '.join(entry['items'][:4])}")
    return 0


def generate(argv: Sequence[str]) -> int:
    """Make cards for users of a bundle: `cards.jsonl`, `images/` and `report.html` in a new folder.

    Raises:
        BundleError, DataError: the bundle cannot be read, or does not know a user.
        ConfigError: the folder exists.
    """
    from recbole_dppmg.evaluation.cards import make_cards
    from recbole_dppmg.evaluation.report import write_report
    from recbole_dppmg.runs import set_threads

    parser = parser_of("generate", "Make cards for users of a bundle.")
    parser.add_argument("--users", required=True, help="ids in the dataset, separated by commas")
    parser.add_argument("--cards", type=int, default=4, help="cards of each user [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path("cards"), help="folder to make [%(default)s]")
    parser.add_argument("--seed", type=int, help="of texts and images [that of the bundle]")
    parser.add_argument("--threads", type=int, help="CPU threads [OMP_NUM_THREADS, else all cores]")
    given = parser.parse_args(argv)
    if given.cards < 1:
        raise ConfigError(f"generate: --cards={given.cards}: must be 1 or more")
    if given.output.exists():
        raise ConfigError(f"generate: --output={given.output}: is already there; give the name of a new folder")
    set_threads(given.threads)
    bundle = Bundle.from_pretrained(given.bundle)
    rows = [bundle.row_of(user) for user in dict.fromkeys(given.users.split(","))]
    cards = make_cards(bundle, rows, given.cards, given.output, bundle.seed if given.seed is None else given.seed)
    about = {"id": given.output.name, "model": "DPPMG", "dataset": str(given.bundle)}
    about |= {f"{m}_generator": Path(getattr(bundle.settings, f"{m}_generator")).name for m in bundle.heads}
    report = given.output / "report.html"
    write_report(report, about, {}, {}, bundle, cards)
    print(f"{len(cards)} cards: {report}")
    return 0
