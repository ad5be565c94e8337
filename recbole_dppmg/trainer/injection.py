"""Stage 2a: teach the generators what the preference tokens mean.

A training example is an item that a user liked, with the tokens that the user's *other* items give
(leave-one-out), so that a token tells the taste and not the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from recbole_dppmg.data.images import load_batch
from recbole_dppmg.generators.targets import reviewed, teaching_target, words_of
from recbole_dppmg.model import codes as residual
from recbole_dppmg.progress import progress
from recbole_dppmg.trainer.checkpoint import Resumable
from recbole_dppmg.trainer.state import RunState, as_tokens
from recbole_dppmg.types import ImageRequest, PreferenceTokens, TextRequest

_WARMUP = 10
_NEAR = 8  # items that show what tokens mean


class TextInjection:
    """Next-token loss on explanations of liked items, or on what the user wrote of them, where they did
    (`review_field`); trains the token rows of the language model."""

    name = "injection.text.loss"

    def fit(self, state: RunState) -> None:
        """Train `state.heads["text"]` for `text_inject_steps` steps; logs `injection.text.loss`."""
        settings, head = state.settings, state.heads["text"]
        steps = settings.text_inject_steps
        batches = partial(_liked, state, "text", settings.text_inject_batch, steps, state.seed + 1)

        def loss(draw: int, rows: Tensor, items: Tensor, tokens: list[PreferenceTokens]) -> Tensor:
            requests = state.requests(TextRequest, items, tokens)
            written = [state.reviews[row] if state.reviews else None for row in rows.tolist()]
            targets = [
                reviewed(r.item, review) if review else teaching_target(r.item, words_of(r.tokens, state.glossary))
                for r, review in zip(requests, written, strict=True)
            ]
            return head.teaching_loss(requests, targets)

        _optimise(state, self.name, head.parameters(), settings.text_learning_rate, steps, batches, loss)


class ImageInjection:
    """Noise-prediction loss on images of liked items, and, without a prompt, of items near to what the tokens mean;
    trains what maps tokens into the diffusion model."""

    name = "injection.image.loss"

    def fit(self, state: RunState) -> None:
        """Train `state.heads["image"]` for `image_inject_steps` steps; logs `injection.image.loss`."""
        settings, head = state.settings, state.heads["image"]
        steps = settings.image_inject_steps
        batches = partial(_liked, state, "image", settings.image_inject_batch, steps, state.seed + 2)

        def loss(draw: int, rows: Tensor, items: Tensor, tokens: list[PreferenceTokens]) -> Tensor:
            generator = torch.Generator().manual_seed((state.seed + 3) * 1_000_003 + draw)
            return head.teaching_loss(*image_examples(state, items, tokens, generator), generator)

        _optimise(state, self.name, head.parameters(), settings.image_learning_rate, steps, batches, loss)


def image_examples(
    state: RunState, items: Tensor, tokens: list[PreferenceTokens], generator: torch.Generator
) -> tuple[list[ImageRequest], Tensor]:
    """What the image generator is taught: requests, and the images to be drawn, float32 (B, 3, size, size).

    A share `text_dropout` of the requests tell nothing of an item, since a prompt that tells all would leave the
    tokens nothing to say. Their images are of items near to what the tokens mean, as in the glossary: those that the
    user liked differ too much for a few hundred steps to find what they have in common.

    Args:
        items: int64 (B,), liked ones, with their users' leave-one-out tokens.
    """
    untold = torch.rand(len(items), generator=generator) < state.settings.text_dropout
    codes = torch.tensor([own["image"] for own in tokens])
    items = torch.where(untold, meant_items(state, codes, generator), items)
    requests = [
        replace(request, item=replace(request.item, title="", text="")) if alone else request
        for request, alone in zip(state.requests(ImageRequest, items, tokens), untold.tolist(), strict=True)
    ]
    return requests, load_batch([request.item.image for request in requests], state.heads["image"].size)


def meant_items(state: RunState, codes: Tensor, generator: torch.Generator) -> Tensor:
    """For each row of image codes, int64 (B, L), a random one of the items whose images lie furthest towards what the
    codes add up to, less what they do for the average user: int64 (B,)."""
    space = state.space
    meant = residual.decode(codes, space.codebooks["image"])
    meant = meant - space.user_quantized["image"][space.history.sizes > 0].mean(0)
    likeness = (meant @ space.item_preference["image"].T).masked_fill_(~state.shown("image"), -torch.inf)
    near = likeness.topk(min(_NEAR, int(state.shown("image").sum())), dim=1).indices
    return near.gather(1, torch.randint(near.shape[1], (len(near), 1), generator=generator)).squeeze(1)


def _liked(
    state: RunState, modality: str, batch: int, steps: int, seed: int, start: int
) -> Iterator[tuple[int, Tensor, Tensor, list[PreferenceTokens]]]:
    """Number of the draw, rows of `state.pairs` int64 (batch,), their items, which show the modality, int64 (batch,),
    and the leave-one-out tokens of the user who liked each; from step `start` on.

    The last tenth of the steps repeats the draws of the first, so that a fall of the loss can be read off without
    the examples' own differences.
    """
    shown = state.shown(modality)[state.pairs[:, 1]].nonzero().squeeze(1)
    fresh = max(1, steps - max(1, steps // 10))
    draws = torch.randint(len(shown), (fresh, batch), generator=torch.Generator().manual_seed(seed))
    for step in range(start, steps):
        rows = shown[draws[step % fresh]]
        users, items = state.pairs[rows].T
        yield step % fresh, rows, items, as_tokens(state.space.leave_one_out(users, items))


def _optimise(
    state: RunState,
    name: str,
    parameters: list,
    rate: float,
    steps: int,
    batches: Callable[[int], Iterator],
    loss_of: Callable[..., Tensor],
) -> None:
    """Train from the newest checkpoint on; every step's draws follow from the seed and the step alone."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP))
    name_of_phase = name.removesuffix(".loss")
    parts = {"optimizer": optimizer, "warmup": warmup}
    resumable = Resumable(state.checkpoints.of(name_of_phase), state.tracker, parameters, parts)
    start, _ = resumable.resume()
    for step, drawn in enumerate(progress(batches(start), name_of_phase, total=steps - start), start):
        loss = loss_of(*drawn)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        warmup.step()
        state.tracker.log({name: loss}, step)
        resumable.after(step + 1, last=step + 1 == steps)
