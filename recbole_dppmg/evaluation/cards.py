"""Cards: recommendations made visible, with an explanation, an image and their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from recbole_dppmg.artifacts import atomic_path, write_text
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.data.encoders import image_encoder, text_encoder
from recbole_dppmg.data.images import to_tensor
from recbole_dppmg.model.codes import decode
from recbole_dppmg.model.reward import personalization
from recbole_dppmg.progress import progress
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import (
    ImageRequest,
    ImageResult,
    PreferenceTokens,
    TextRequest,
    TextResult,
    token_names,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 8


@dataclass
class Card:
    """One line of `cards.jsonl`. `image` is relative to the run's folder; `error` tells what could not be made."""

    user: str
    item: str
    title: str
    score: float
    text: str
    image: str | None
    tokens: dict[str, list[str]]
    scores: dict[str, float]
    error: str | None = None


def choose_users(bundle: Bundle, number: int, seed: int) -> list[int]:
    """Random users with at least ten training items (or, where there are too few, the most active)."""
    sizes = bundle.space.history.sizes
    eligible = (sizes >= 10).nonzero().squeeze(1)
    if len(eligible) < number:
        eligible = sizes.argsort(descending=True, stable=True)
        return eligible[sizes[eligible] > 0][:number].tolist()
    order = torch.randperm(len(eligible), generator=torch.Generator().manual_seed(seed))
    return eligible[order[:number]].sort().values.tolist()


class Choice(NamedTuple):
    """An item's row chosen for someone, who has these tokens."""

    user: str
    item: int
    score: float
    tokens: PreferenceTokens


def make_cards(bundle: Bundle, users: Sequence[int], k: int, folder: Path, seed: int) -> list[Card]:
    """Cards of the k best unseen items of each user; writes `images/*.png` and `cards.jsonl` under `folder`.

    A card has a text and an image as far as the bundle has generators of them.
    """
    best = zip(users, *(part.tolist() for part in bundle.space.recommend(torch.tensor(users), k)), strict=True)
    chosen = [
        Choice(bundle.user_ids[user], item, score, bundle.space.user_tokens(user))
        for user, items, scores in best
        for item, score in zip(items, scores, strict=True)
        if score > -torch.inf
    ]
    cards = []
    for choice, (card, image) in zip(chosen, generate_cards(bundle, chosen, seed), strict=True):
        if image:
            card.image = f"images/u{bundle.user_rows[choice.user]}-i{choice.item}.png"
            with atomic_path(folder / card.image) as temporary:
                image.save(temporary, format="PNG")
        cards.append(card)
    write_text(folder / "cards.jsonl", "".join(json.dumps(asdict(c), ensure_ascii=False) + "\n" for c in cards))
    return cards


def same_item_cards(bundle: Bundle, item: int, users: Sequence[int], seed: int) -> list[tuple[Card, Image | None]]:
    """Cards of one item for several users, with the same noise and draws, so that they differ by the tokens alone."""
    scores = bundle.space.scores(torch.tensor(users))[:, item].tolist()
    chosen = [
        Choice(bundle.user_ids[user], item, score, bundle.space.user_tokens(user))
        for user, score in zip(users, scores, strict=True)
    ]
    return generate_cards(bundle, chosen, seed)


def generate_cards(bundle: Bundle, chosen: Sequence[Choice], seed: int) -> list[tuple[Card, Image | None]]:
    """The card of each choice, and its image, which nothing has stored yet."""
    content = [bundle.items[choice.item] for choice in chosen]
    texts, images = [TextResult("")] * len(chosen), [ImageResult(None)] * len(chosen)
    wanted = [(item, choice.tokens, seed) for item, choice in zip(content, chosen, strict=True)]
    if "text" in bundle.heads:
        texts = _in_batches(bundle.heads["text"], [TextRequest(*parts) for parts in wanted], "explanations")
    if "image" in bundle.heads:
        images = _in_batches(bundle.heads["image"], [ImageRequest(*parts) for parts in wanted], "images")
    placed = [(choice.tokens, choice.item) for choice in chosen]
    measured = score_cards(bundle, placed, [t.text for t in texts], [i.image for i in images])
    cards = []
    for choice, item, text, image, scores in zip(chosen, content, texts, images, measured, strict=True):
        errors = [e for e in (text.error, image.error) if e]
        card = Card(
            user=choice.user,
            item=item.id,
            title=item.title,
            score=round(choice.score, 6),
            text=text.text,
            image=None,
            tokens=token_names(choice.tokens),
            scores=scores,
            error="; ".join(errors) or None,
        )
        cards.append((card, image.image))
    return cards


def _in_batches(head, requests: list, description: str) -> list:
    starts = range(0, len(requests), _BATCH)
    bar = progress(starts, description, unit="batch")
    return [result for start in bar for result in head.generate(requests[start : start + _BATCH])]


@torch.no_grad()
def score_cards(
    bundle: Bundle, pairs: Sequence[tuple[PreferenceTokens, int]], texts: Sequence[str], images: Sequence
) -> list[dict[str, float]]:
    """Per card of (tokens, item row): personalization of text and image, their consistency, and their fidelity
    to the item, as far as the card has them and the bundle knows the encoders.

    Personalization is measured against all users, in the space that was trained: a measure of what the reward
    asked for, not an independent judge.
    """
    space, settings, joint = bundle.space, bundle.settings, bundle.joint
    scores: list[dict[str, float]] = [{} for _ in pairs]
    placed: dict[str, dict[int, Tensor]] = {}
    everyone = space.history.sizes > 0
    for modality, made in (("text", texts), ("image", images)):
        rows = [n for n, content in enumerate(made) if content]
        if not rows or modality not in space.modalities or getattr(settings, f"{modality}_features"):
            continue
        features = _encode(settings, modality, [made[n] for n in rows])
        own = decode(torch.tensor([pairs[n][0][modality] for n in rows]), space.codebooks[modality])
        content = space.project(modality, features).unsqueeze(1)
        others = space.user_quantized[modality][everyone].unsqueeze(0)
        p = personalization(content, own, others).squeeze(1)
        for n, value in zip(rows, p.tolist(), strict=True):
            scores[n][f"personalization.{modality}"] = round(value, 4)
        if joint is not None:
            placed[modality] = dict(zip(rows, joint(modality, features), strict=True))
    if joint is None:
        return scores
    items = sorted({item for _, item in pairs if bundle.items[item].text and bundle.items[item].image})
    if not items:
        return scores
    known = [bundle.items[item] for item in items]
    text = _encode(settings, "text", [item.text for item in known])
    image = image_encoder(settings.image_encoder).encode([item.image for item in known])
    target = dict(zip(items, joint.items(text, image), strict=True))
    for n, (_, item) in enumerate(pairs):
        own = {modality: found[n] for modality, found in placed.items() if n in found}
        if len(own) == 2:
            scores[n]["consistency"] = round((own["text"] @ own["image"]).item(), 4)
        if item in target:
            scores[n] |= {f"fidelity.{m}": round((vector @ target[item]).item(), 4) for m, vector in own.items()}
    return scores


def _encode(settings: Settings, modality: str, contents: Sequence) -> Tensor:
    if modality == "text":
        return text_encoder(settings.text_encoder).encode(contents)
    return image_encoder(settings.image_encoder)(to_tensor(contents))
