"""What is generated for the evaluation: the same items for many users, under every condition that is compared.

Conditions: `own`, the user's tokens; `none`, no tokens; `before` and `none_before`, the same with the head as it was
before the reward phase; `random`, own tokens in a head whose token parameters are as drawn; `history`, what the user
liked instead of tokens: titles in the text's prompt, and for the image the mean of the liked images' features, as
tokens; and the baselines `template` (text) and `nearest` (image).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.errors import DataError
from recbole_dppmg.generators.base import Catalogue, build_head
from recbole_dppmg.generators.targets import listed
from recbole_dppmg.model import codes as residual
from recbole_dppmg.progress import progress
from recbole_dppmg.types import ImageRequest, Item, PreferenceTokens, TextRequest

GROUP = 20
_BATCH = {"text": 64, "image": 16}
_TITLES = 6
_BASELINE = {"text": "template", "image": "nearest"}


@dataclass(frozen=True)
class Plan:
    """Which cards are made: item rows int64 (N,), and for each the rows of G users, int64 (N, G)."""

    items: Tensor
    users: Tensor


@dataclass(frozen=True)
class Made:
    """Distinct contents (texts, or RGB images), `errors` beside them, and which of them each card has: int64 (N, G)."""

    contents: list
    errors: list[str | None]
    index: Tensor

    def failed(self) -> Tensor:
        """Which cards have no content of their own: bool (N, G)."""
        return torch.tensor([error is not None for error in self.errors])[self.index]


def make_plan(bundle: Bundle, known: Tensor, test: Tensor, pairs: int, seed: int) -> Plan:
    """Random test items with the users who took them in the test split, filled up with users who never met the item.

    Items that at least 20 users took in the test split come first; users who are not in the plan yet come first.

    Args:
        known: int64 (E, 2), the training and validation interactions, as (user, item).
        test: int64 (T, 2).
        pairs: how many cards, at least; whole groups of 20 users (or of all, where there are fewer).

    Raises:
        DataError: the test split has too few items with content.
    """
    generator = torch.Generator().manual_seed(seed)
    active = (bundle.space.history.sizes > 0).nonzero().squeeze(1)
    size = min(GROUP, len(active))
    number = -(-pairs // size)
    shown = torch.tensor([_shown(item, list(bundle.heads)) for item in bundle.items])
    counts = torch.bincount(test[:, 1], minlength=len(shown)) * shown
    order = torch.randperm(len(counts), generator=generator)
    order = order[counts[order] > 0]
    order = order[counts[order].clamp_max(size).argsort(descending=True, stable=True)][:number]
    if size < 2 or len(order) < number:
        raise DataError(
            f"evaluate: {pairs} pairs need {number} test items with text and image for {size} users each, and "
            f"there are {len(order)}; lower --pairs"
        )
    used = torch.zeros(len(bundle.user_ids), dtype=torch.bool)
    users = []
    for item in order:
        lot = torch.rand(len(used), generator=generator) + used.double()
        took = torch.zeros_like(used)
        took[test[test[:, 1] == item, 0]] = True
        lot += 4 * ~took  # who took it first, then who never met it
        lot[known[known[:, 1] == item, 0]] += 8
        chosen = active[lot[active].argsort()[:size]]
        used[chosen] = True
        users.append(chosen[torch.randperm(size, generator=generator)])  # neighbours are strangers
    return Plan(order, torch.stack(users))


def _shown(item: Item, modalities: Sequence[str]) -> bool:
    return bool((item.text or "text" not in modalities) and (item.image or "image" not in modalities))


def produce(bundle: Bundle, plan: Plan, modality: str, seed: int, heads: Path, before: Path | None) -> dict[str, Made]:
    """Contents of every card of the plan, by condition.

    Args:
        seed: of texts and images, the same for all users, so that what differs is what the tokens do.
        heads: the folder of the bundle's heads.
        before: the folder of the heads before the reward phase, if there was one.
    """
    head = bundle.heads[modality]
    own = [[bundle.space.user_tokens(user) for user in row] for row in plan.users.tolist()]
    items = [bundle.items[item] for item in plan.items.tolist()]
    same = [[item] * plan.users.shape[1] for item in items]
    nobody = [[None] * plan.users.shape[1] for _ in items]

    def made(head: Any, name: str, items: list[list[Item]], tokens: list[list[PreferenceTokens | None]]) -> Made:
        return _generate(head, modality, f"{modality}s, {name}", items, tokens, seed)

    found = {"own": made(head, "own tokens", same, own)}
    found["none"] = made(head, "no tokens", same, nobody)
    if modality == "text":
        told = [
            [_told(bundle, item, user) for user in row] for item, row in zip(items, plan.users.tolist(), strict=True)
        ]
        found["history"] = made(head, "history", told, nobody)
    else:
        found["history"] = made(head, "history", same, _mean_tokens(bundle, plan, own))
    if head.parameters():
        if before is not None:
            head.load(before / modality)
            found["before"] = made(head, "before the reward", same, own)
            found["none_before"] = made(head, "no tokens, before", same, nobody)
            head.load(heads / modality)
        settings = bundle.settings
        # without a catalogue, so that rows do not start from the words that their tokens stand for
        raw = build_head(modality, getattr(settings, f"{modality}_head"), bundle.space.codebooks, settings, seed)
        found["random"] = made(raw, "random tokens", same, own)
        del raw
    name = _BASELINE[modality]
    catalogue = Catalogue(bundle.space, bundle.items, bundle.glossary)
    baseline = build_head(modality, name, bundle.space.codebooks, bundle.settings, seed, catalogue)
    found[name] = made(baseline, name, same, own)
    return found


def _told(bundle: Bundle, item: Item, user: int) -> Item:
    """The item with the user's latest likes before its own text, where prompts do not cut them off."""
    titles = [bundle.items[row].title for row in bundle.recent[user] if bundle.items[row].id != item.id][:_TITLES]
    return replace(item, text=f"The reader liked {listed(titles)}. {item.text}") if titles else item


def _mean_tokens(bundle: Bundle, plan: Plan, own: list[list[PreferenceTokens]]) -> list[list[PreferenceTokens]]:
    """Own tokens, but those of images follow from the mean of the liked items' projected features alone."""
    space = bundle.space
    mean = space.history.take(plan.users.flatten()).mean(space.start["image"])
    mean = torch.nn.functional.normalize(mean, dim=-1)
    codes = residual.encode(mean, space.codebooks["image"]).view(*plan.users.shape, -1).tolist()
    return [
        [{**tokens, "image": tuple(code)} for tokens, code in zip(row, table, strict=True)]
        for row, table in zip(own, codes, strict=True)
    ]


def _generate(
    head: Any,
    modality: str,
    told: str,
    items: list[list[Item]],
    tokens: list[list[PreferenceTokens | None]],
    seed: int,
) -> Made:
    """Each distinct request once: an image follows from item, image tokens and seed, a text from all tokens."""
    kind: Callable = TextRequest if modality == "text" else ImageRequest
    requests, known, index = [], {}, []
    for item_row, token_row in zip(items, tokens, strict=True):
        index.append([])
        for item, own in zip(item_row, token_row, strict=True):
            used = own if own is None or modality == "text" else {"image": own["image"]}
            key = (item.id, item.text, None if used is None else tuple(sorted(used.items())))
            if key not in known:
                known[key] = len(requests)
                requests.append(kind(item, used, seed))
            index[-1].append(known[key])
    step = _BATCH[modality]
    bar = progress(range(0, len(requests), step), told, unit="batch")
    results = [result for start in bar for result in head.generate(requests[start : start + step])]
    errors = [result.error for result in results]
    contents = [result.text for result in results] if modality == "text" else _images(results)
    return Made(contents, errors, torch.tensor(index))


def _images(results: list) -> list:
    """One size for all; a failed one is grey."""
    from PIL import Image

    sizes = [result.image.size for result in results if result.image is not None]
    size = sizes[0] if sizes else (64, 64)
    grey = Image.new("RGB", size, (128, 128, 128))
    images = [result.image or grey for result in results]
    return [image if image.size == size else image.resize(size, Image.Resampling.BICUBIC) for image in images]
