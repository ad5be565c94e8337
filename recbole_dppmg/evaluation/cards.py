"""Cards: recommendations made visible, with an explanation, an image and their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_dppmg.artifacts import atomic_path, write_text
from recbole_dppmg.bundle import Bundle
from recbole_dppmg.data.encoders import image_encoder, text_encoder
from recbole_dppmg.data.images import to_tensor
from recbole_dppmg.model.reward import fidelity, personalization
from recbole_dppmg.progress import progress
from recbole_dppmg.types import ImageRequest, TextRequest, token_names

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
    sizes = torch.tensor([len(rows) for rows in bundle.history])
    eligible = (sizes >= 10).nonzero().squeeze(1)
    if len(eligible) < number:
        return sizes.argsort(descending=True)[:number].tolist()
    order = torch.randperm(len(eligible), generator=torch.Generator().manual_seed(seed))
    return eligible[order[:number]].sort().values.tolist()


def recommend(bundle: Bundle, users: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The k best unseen items of each user: rows int64 (B, k) and scores float32 (B, k)."""
    scores = bundle.space.scores(torch.tensor(users))
    scores[:, 0] = -torch.inf
    for row, user in enumerate(users):
        scores[row, bundle.history[user]] = -torch.inf
    best = scores.topk(k, dim=1)
    return best.indices, best.values


def make_cards(bundle: Bundle, users: Sequence[int], k: int, folder: Path, seed: int) -> list[Card]:
    """Generate k cards for each user; writes `images/*.png` and `cards.jsonl` under `folder`."""
    items, scores = recommend(bundle, users, k)
    pairs = [(user, item) for user, row in zip(users, items.tolist(), strict=True) for item in row]
    tokens = [bundle.space.user_tokens(user) for user, _ in pairs]
    content = [bundle.items[item] for _, item in pairs]
    text_requests = [TextRequest(item, t, seed) for item, t in zip(content, tokens, strict=True)]
    image_requests = [ImageRequest(item, t, seed) for item, t in zip(content, tokens, strict=True)]
    texts = _in_batches(bundle.heads["text"], text_requests, "explanations")
    images = _in_batches(bundle.heads["image"], image_requests, "images")
    measured = score_cards(bundle, pairs, [t.text for t in texts], [i.image for i in images])
    cards = []
    for n, (user, item) in enumerate(pairs):
        name = f"images/u{user}-i{item}.png" if images[n].image else None
        if name:
            with atomic_path(folder / name) as temporary:
                images[n].image.save(temporary, format="PNG")
        errors = [e for e in (texts[n].error, images[n].error) if e]
        cards.append(
            Card(
                user=bundle.user_ids[user], item=content[n].id, title=content[n].title,
                score=round(scores.flatten()[n].item(), 6), text=texts[n].text, image=name,
                tokens=token_names(tokens[n]), scores=measured[n], error="; ".join(errors) or None,
            )
        )
    write_text(folder / "cards.jsonl", "".join(json.dumps(asdict(c), ensure_ascii=False) + "\n" for c in cards))
    return cards


def _in_batches(head, requests: list, description: str) -> list:
    starts = range(0, len(requests), _BATCH)
    bar = progress(starts, description, unit="batch")
    return [result for start in bar for result in head.generate(requests[start : start + _BATCH])]


@torch.no_grad()
def score_cards(bundle: Bundle, pairs: list[tuple[int, int]], texts: list[str], images: list) -> list[dict[str, float]]:
    """Per card: personalization of text and image, their consistency, and their fidelity to the item.

    Personalization is measured against all users, in the space that was trained: a measure of what the reward
    asked for, not an independent judge.
    """
    space, settings = bundle.space, bundle.settings
    users = torch.tensor([user for user, _ in pairs])
    scores: list[dict[str, float]] = [{} for _ in pairs]
    features = {}
    has_image = [n for n, image in enumerate(images) if image is not None]
    if texts:
        features["text"] = (list(range(len(texts))), text_encoder(settings.text_encoder).encode(texts))
    if has_image:
        features["image"] = (has_image, image_encoder(settings.image_encoder)(to_tensor([images[n] for n in has_image])))
    joint: dict[str, dict[int, Tensor]] = {}
    for modality, (rows, table) in features.items():
        others = space.user_quantized[modality][1:].unsqueeze(0)
        own = space.user_quantized[modality][users[rows]]
        p = personalization(space.project(modality, table).unsqueeze(1), own, others).squeeze(1)
        for n, value in zip(rows, p.tolist(), strict=True):
            scores[n][f"personalization.{modality}"] = round(value, 4)
        if bundle.joint is not None:
            joint[modality] = dict(zip(rows, bundle.joint(modality, table), strict=True))
    if len(joint) == 2:
        catalogue = text_encoder(settings.text_encoder).encode([bundle.items[item].text for _, item in pairs])
        target = bundle.joint("text", catalogue)
        for n in has_image:
            scores[n]["consistency"] = round(F.cosine_similarity(joint["text"][n], joint["image"][n], dim=0).item(), 4)
            for modality in joint:
                value = fidelity(joint[modality][n].unsqueeze(0), target[n])
                scores[n][f"fidelity.{modality}"] = round(value.item(), 4)
    return scores
