"""What is served, without the web: recommendations, tokens, and what a card is made of.

Everything is addressed by the dataset's own user and item ids; nothing here waits for a generator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from recbole_dppmg.artifacts import MANIFEST, fingerprint
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.errors import DataError
from recbole_dppmg.types import PreferenceTokens, token_name

K_MAX = 100
HISTORY_MAX = 500
EXCLUDE_MAX = 1000
_RECENT = 24


class UnknownUser(DataError):
    """The user is not in the bundle."""


class UnknownItem(DataError):
    """The item is not in the bundle."""


@dataclass(frozen=True)
class Recommended:
    """Item rows with their scores, best first, and the tokens of the user they are for."""

    items: list[int]
    scores: list[float]
    tokens: PreferenceTokens


@dataclass(frozen=True)
class CardOrder:
    """What makes a card what it is. `id` is the same for all users with these tokens."""

    id: str
    item: int
    tokens: PreferenceTokens
    seed: int

    def request(self) -> dict[str, Any]:
        """As JSON, for the store and the generator's process."""
        return {"item": self.item, "tokens": {m: list(codes) for m, codes in self.tokens.items()}, "seed": self.seed}


class Engine:
    """A bundle, ready to answer.

    Raises:
        BundleError: the bundle is incomplete, damaged or of another version.
    """

    def __init__(self, directory: str | Path):
        self.folder = Path(directory)
        if not self.folder.is_dir():
            from recbole_dppmg.assets import resolve

            self.folder = resolve(str(directory))
        self.bundle = Bundle.from_pretrained(self.folder)
        manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        self.checksums: dict[str, str] = manifest["sha256"]
        self.bundle_id = fingerprint(self.checksums)
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.heads: dict[str, str] = {m: config["heads"][m] for m in self.bundle.heads}
        self.recommend_history([], 1)  # builds what the first request would otherwise wait for

    def recommend_user(self, user: str, k: int, exclude: Sequence[str] = ()) -> Recommended:
        """The k best items for a known user, without their training items and `exclude`.

        Raises:
            UnknownUser, UnknownItem: an id is not in the bundle.
        """
        row, space = self.user_row(user), self.bundle.space
        users = torch.tensor([row])
        own = space.history.take(users).items.tolist()
        return self._recommend(users, k, own + self._rows(exclude), space.user_tokens(row))

    def recommend_history(self, history: Sequence[str], k: int, exclude: Sequence[str] = ()) -> Recommended:
        """The k best items for someone who likes these items: fold-in. No items: the average user.

        Raises:
            UnknownItem: an id is not in the bundle.
        """
        rows = self._rows(history)
        folded = self.bundle.space.fold_in([rows])
        tokens = {m: tuple(codes[0].tolist()) for m, codes in folded.codes.items()}
        return self._recommend(folded.fused, k, rows + self._rows(exclude), tokens)

    @torch.inference_mode()
    def _recommend(self, users: torch.Tensor, k: int, exclude: list[int], tokens: PreferenceTokens) -> Recommended:
        items, scores = self.bundle.space.recommend(users, min(k, K_MAX), ItemLists.of([exclude]))
        kept = [(i, s) for i, s in zip(items[0].tolist(), scores[0].tolist(), strict=True) if s > -torch.inf]
        return Recommended([i for i, _ in kept], [s for _, s in kept], tokens)

    def tokens_of_history(self, history: Sequence[str]) -> PreferenceTokens:
        """The tokens of someone who likes these items."""
        folded = self.bundle.space.fold_in([self._rows(history)])
        return {m: tuple(codes[0].tolist()) for m, codes in folded.codes.items()}

    def tokens_of_user(self, user: str) -> PreferenceTokens:
        """The tokens of a known user."""
        return self.bundle.space.user_tokens(self.user_row(user))

    def checked_tokens(self, tokens: Mapping[str, Sequence[int]]) -> PreferenceTokens:
        """Tokens given by hand, one code per level of each modality.

        Raises:
            DataError: a modality is missing or unknown, or a code is out of range.
        """
        codebooks = self.bundle.space.codebooks
        if set(tokens) != set(codebooks):
            raise DataError(
                f"tokens: give the modalities {', '.join(sorted(codebooks))}, not {', '.join(sorted(tokens))}"
            )
        for modality, codes in tokens.items():
            levels, number, _ = codebooks[modality].shape
            if len(codes) != levels or not all(0 <= code < number for code in codes):
                raise DataError(f"tokens.{modality}: give {levels} codes from 0 to {number - 1}")
        return {m: tuple(tokens[m]) for m in codebooks}

    def order(self, item: str, tokens: PreferenceTokens, seed: int) -> CardOrder:
        """The card of an item for a user with these tokens."""
        row = self.item_row(item)
        return CardOrder(fingerprint(self.bundle_id, self.heads, tokens, row, seed), row, tokens, seed)

    def user_row(self, user: str) -> int:
        """The row of a user id."""
        row = self.bundle.user_rows.get(user)
        if row is None:
            raise UnknownUser(
                f"user '{_short(user)}' is not among the {len(self.bundle.user_rows)} users of this bundle"
            )
        return row

    def item_row(self, item: str) -> int:
        """The row of an item id."""
        row = self.bundle.item_rows.get(item)
        if row is None:
            raise UnknownItem(
                f"item '{_short(item)}' is not among the {len(self.bundle.item_rows)} items of this bundle"
            )
        return row

    def _rows(self, items: Sequence[str]) -> list[int]:
        return [self.item_row(item) for item in items]

    def catalogue_image(self, row: int) -> tuple[Path, str] | None:
        """The file of an item's image in the bundle and its sha256."""
        path = self.bundle.items[row].image
        return path and (path, self.checksums[path.relative_to(self.folder).as_posix()])

    def recent(self, user: str) -> tuple[int, list[int]]:
        """How many training items a user has, and the rows of the last of them, newest first."""
        row = self.user_row(user)
        return int(self.bundle.space.history.sizes[row]), list(self.bundle.recent[row][:_RECENT])

    def describe(self, tokens: PreferenceTokens) -> dict[str, list[dict[str, Any]]]:
        """Tokens by name, with the words and items that set each apart."""
        return {
            m: [
                {
                    "name": (name := token_name(m, level, code)),
                    "level": level,
                    "code": code,
                    **{part: self.bundle.glossary.get(name, {}).get(part, []) for part in ("words", "items")},
                }
                for level, code in enumerate(codes)
            ]
            for m, codes in tokens.items()
        }

    @cached_property
    def _by_use(self) -> tuple[list[str], list[int]]:
        """Searchable titles and their rows, the best known first."""
        uses = torch.bincount(self.bundle.space.history.items, minlength=len(self.bundle.items))
        rows = [row for row in uses.argsort(descending=True, stable=True).tolist() if row]
        return [f"{self.bundle.items[row].title} {self.bundle.items[row].year or ''}".casefold() for row in rows], rows

    def search_items(self, query: str, limit: int) -> list[int]:
        """Rows of items that have every word of the query in their title or year, or the query as id; those
        that start with it first, then the best known."""
        titles, rows = self._by_use
        wanted, words = query.strip().casefold(), query.casefold().split()
        found = [n for n, title in enumerate(titles) if all(word in title for word in words)]
        found.sort(key=lambda n: (not f"{titles[n]} ".startswith(f"{wanted} "), not titles[n].startswith(wanted)))
        named = self.bundle.item_rows.get(query.strip())
        result = [named] if named else []
        return (result + [rows[n] for n in found if rows[n] != named])[:limit]

    def search_users(self, query: str, limit: int) -> list[str]:
        """User ids that start with the query, the exact one first; then those that contain it."""
        wanted = query.strip()
        ids = self.bundle.user_rows
        starting = [user for user in ids if user.startswith(wanted)]
        containing = [user for user in ids if wanted in user and not user.startswith(wanted)] if wanted else []
        exact = [wanted] if wanted in ids else []
        return (exact + [user for user in starting + containing if user != wanted])[:limit]


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
