"""Writing: completions drawn from a language model with preference tokens, whole batches at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recbole_dppmg.generators.language_model import Completions, Context, TokenLM
from recbole_dppmg.generators.prompts import Prompt

_COMPACT = 0.75  # share of rows still writing, below which finished ones leave the batch


@torch.no_grad()
def complete(
    lm: TokenLM,
    prompts: Sequence[Prompt],
    chance: Tensor,
    temperature: float,
    top_k: int = 0,
    sentences: int = 2,
    whole: bool = True,
) -> Completions:
    """Completions of at most T tokens, up to the end token or to a number of sentences.

    Where the model's scores are not numbers, nothing is written.

    Args:
        prompts: B of them.
        chance: float (N, T) in [0, 1), N a multiple of B: the draws. The same draws, the same texts.
        temperature: 0 takes the likeliest token.
        top_k: draw among so many tokens; 0: among all.
        sentences: how many are enough; one ends where a word begins after a full stop.
        whole: do not end before the first sentence has.
    """
    with lm.merged():
        context = lm.read(prompts)
        group = len(chance) // len(prompts)
        context.cache.batch_repeat_interleave(group)
        context.logits = context.logits.repeat_interleave(group, 0)
        context.mask = context.mask.repeat_interleave(group, 0)
        return _write(lm, context, chance.to(lm.device), temperature, top_k, sentences, whole)


def _write(
    lm: TokenLM, context: Context, chance: Tensor, temperature: float, top_k: int, sentences: int, whole: bool
) -> Completions:
    (number, steps), device = chance.shape, lm.device
    ends, (stops, begins) = torch.tensor(lm.ends, device=device), lm.sentence
    ids = torch.full((number, steps), lm.ends[0], device=device)
    mask = torch.zeros(number, steps, dtype=torch.bool, device=device)
    logits, seen, position = context.logits, context.mask, context.mask.sum(1, keepdim=True)
    rows = torch.arange(number, device=device)  # who is still in the batch
    told = torch.zeros(number, dtype=torch.long, device=device)  # sentences finished
    stopped = torch.zeros(number, dtype=torch.bool, device=device)  # the last token was a full stop
    done = logits.isnan().any(1)
    for step in range(steps):
        if whole:
            early = (told + stopped < 1).unsqueeze(1)
            logits[:, ends] = logits[:, ends].masked_fill(early, -torch.inf)
        token = draw(logits, chance[rows, step], temperature, top_k)
        told = told + (stopped & begins[token])
        stopped = stops[token]
        keep = ~done & (told < sentences)
        ids[rows[keep], step] = token[keep]
        mask[rows[keep], step] = True
        done = done | torch.isin(token, ends) | (told >= sentences)
        left = (~done).nonzero().squeeze(1)
        if step + 1 == steps or not len(left):
            break
        if len(left) < _COMPACT * len(done):
            context.cache.batch_select_indices(left)
            rows, seen, position, token = rows[left], seen[left], position[left], token[left]
            told, stopped, done = told[left], stopped[left], done[left]
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)
        out = lm.model(
            input_ids=token.unsqueeze(1),
            attention_mask=seen,
            position_ids=position,
            cache=context.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits, position = lm.spoken(out.logits[:, -1]), position + 1
    width = max(1, int(mask.any(0).sum()))
    return Completions(ids[:, :width], mask[:, :width])


def draw(logits: Tensor, chance: Tensor, temperature: float, top_k: int = 0) -> Tensor:
    """One token per row by inverse transform: int64 (N,), from logits (N, V) and `chance` (N,) in [0, 1).

    >>> draw(torch.tensor([[0.0, 1.0]]).expand(3, 2), torch.tensor([0.0, 0.3, 0.9]), temperature=1.0)
    tensor([0, 1, 1])
    """
    if not temperature:
        return logits.argmax(-1)
    order = None
    if 0 < top_k < logits.shape[1]:
        logits, order = logits.topk(top_k)
    cumulated = (logits.double() / temperature).softmax(-1).cumsum(-1)
    choice = (cumulated <= (chance.double() * cumulated[:, -1]).unsqueeze(1)).sum(-1, keepdim=True)
    choice = choice.clamp_max(logits.shape[1] - 1)
    return (choice if order is None else order.gather(1, choice)).squeeze(1)
