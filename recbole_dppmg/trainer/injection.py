"""Stage 2a: teach the generators what the preference tokens mean.

A training example is an item that a user liked, with the tokens that the user's *other* items give
(leave-one-out), so that a token tells the taste and not the answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from recbole_dppmg.data.images import load_batch
from recbole_dppmg.generators.targets import teaching_target
from recbole_dppmg.progress import progress
from recbole_dppmg.trainer.state import RunState, as_tokens
from recbole_dppmg.types import ImageRequest, PreferenceTokens, TextRequest, token_name

_WARMUP = 10


class TextInjection:
    """Next-token loss on explanations of liked items; trains the token rows of the language model."""

    name = "injection.text.loss"

    def fit(self, state: RunState) -> None:
        """Train `state.heads["text"]` for `text_inject_steps` steps; logs `injection.text.loss`."""
        settings, head = state.settings, state.heads["text"]
        has_text = state.features["text"][1]
        batches = _liked(state, has_text, settings.text_inject_batch, settings.text_inject_steps, state.seed + 1)

        def loss(step: int, items: Tensor, tokens: list[PreferenceTokens]) -> Tensor:
            chosen = [state.items[i] for i in items.tolist()]
            requests = [TextRequest(item, t) for item, t in zip(chosen, tokens, strict=True)]
            targets = [
                teaching_target(item, *words_of(t, state.glossary), seed=step * len(chosen) + n)
                for n, (item, t) in enumerate(zip(chosen, tokens, strict=True))
            ]
            return head.teaching_loss(requests, targets)

        _optimise(state, self.name, head.parameters(), settings.text_learning_rate, batches, loss)


class ImageInjection:
    """Noise-prediction loss on images of liked items; trains the token projector of the diffusion model."""

    name = "injection.image.loss"

    def fit(self, state: RunState) -> None:
        """Train `state.heads["image"]` for `image_inject_steps` steps; logs `injection.image.loss`."""
        settings, head = state.settings, state.heads["image"]
        has_image = state.features["image"][1]
        batches = _liked(state, has_image, settings.image_inject_batch, settings.image_inject_steps, state.seed + 2)
        generator = torch.Generator().manual_seed(state.seed + 3)

        def loss(step: int, items: Tensor, tokens: list[PreferenceTokens]) -> Tensor:
            chosen = [state.items[i] for i in items.tolist()]
            requests = [ImageRequest(item, t) for item, t in zip(chosen, tokens, strict=True)]
            images = load_batch([item.image for item in chosen], head.size)
            return head.teaching_loss(requests, images, generator)

        _optimise(state, self.name, head.parameters(), settings.image_learning_rate, batches, loss)


def words_of(tokens: PreferenceTokens, glossary: dict[str, dict[str, list[str]]]) -> tuple[list[str], list[str]]:
    """The glossary's words for a user's text tokens and image tokens, coarse levels first."""
    found = {
        modality: [w for level, code in enumerate(codes) for w in glossary[token_name(modality, level, code)]["words"]]
        for modality, codes in tokens.items()
    }
    return found.get("text", []), found.get("image", [])


def _liked(
    state: RunState, has_content: Tensor, batch: int, steps: int, seed: int
) -> Iterator[tuple[Tensor, list[PreferenceTokens]]]:
    """Random liked items, int64 (batch,), with the leave-one-out tokens of the user who liked each."""
    pairs = state.pairs[has_content[state.pairs[:, 1]]]
    draws = torch.randint(len(pairs), (steps, batch), generator=torch.Generator().manual_seed(seed))
    for rows in draws:
        users, items = pairs[rows].T
        yield items, as_tokens(state.space.leave_one_out(users, items))


def _optimise(state: RunState, name: str, parameters: list, rate: float, batches: Iterator, loss_of) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP))
    steps = state.settings.text_inject_steps if "text" in name else state.settings.image_inject_steps
    for step, (items, tokens) in enumerate(progress(batches, name.rpartition(".")[0], total=steps)):
        loss = loss_of(step, items, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        warmup.step()
        state.tracker.log({name: loss}, step)
