"""What preference tokens are worth: used evenly, keeping the ranking, stable between seeds, and meaning something.

python -m benchmarks.tokens --data=ml-100k
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import Split, folder_of, load
from benchmarks.peers import fit
from recbole_dppmg.config import parse_arguments
from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.model import codes as residual
from recbole_dppmg.model.glossary import build_glossary, words_of
from recbole_dppmg.model.space import PreferenceSpace
from recbole_dppmg.types import Item, token_name

_NEAR = 20


def main(argv: list[str]) -> None:
    keys = parse_arguments(argv)
    split = load(*folder_of(str(keys.pop("data", "ml-100k"))), keys)
    fitted = [fit("DPPMG", split, {}, seed) for seed in range(2)]
    notes = fitted[0].notes
    told = ("lowest utilization", "lowest perplexity", "kept")
    print("health:", ", ".join(f"{name} {notes[name]:.3f}" for name in told))
    spaces = [each.notes["model"].space() for each in fitted]
    stability(spaces)
    fold_in(spaces[0])
    meaning(split, spaces[0])


def stability(spaces: list[PreferenceSpace]) -> None:
    """Users' 20 nearest by shared tokens (all modalities, coarser levels first) and by embeddings."""
    known = (spaces[0].history.sizes > 0).nonzero().squeeze(1)
    near: dict[str, list[Tensor]] = {"tokens": [], "embeddings": []}
    for space in spaces:
        shared = torch.zeros(len(known), len(known))
        for modality in space.modalities:
            agree = torch.ones(len(known), len(known), dtype=torch.bool)
            for column in space.user_codes[modality][known].T:
                agree &= column.unsqueeze(1) == column
                shared += agree
        # ties are many: broken by the quantized vectors, which are the tokens' own
        quantized = torch.cat([F.normalize(space.user_quantized[m][known], dim=1) for m in space.modalities], 1)
        vectors = torch.cat([space.user_preference[m][known] for m in space.modalities], 1)
        for name, table in (("tokens", shared + 1e-3 * quantized @ quantized.T), ("embeddings", vectors @ vectors.T)):
            near[name].append(table.fill_diagonal_(-torch.inf).topk(_NEAR).indices)
    chance = _NEAR / (len(known) - 1)
    pairs = {
        "tokens, two seeds": near["tokens"],
        "embeddings, two seeds": near["embeddings"],
        "tokens and embeddings, one seed": [near["tokens"][0], near["embeddings"][0]],
    }
    for name, (first, second) in pairs.items():
        overlap = (first.unsqueeze(2) == second.unsqueeze(1)).any(2).float().mean()
        print(f"overlap of {_NEAR} nearest users, {name}: {overlap:.3f} (chance {chance:.3f})")


def fold_in(space: PreferenceSpace) -> None:
    """Known users from their training items: the same tokens, the same recommendations?"""
    known = (space.history.sizes > 0).nonzero().squeeze(1)
    lists = space.history.take(known)
    folded = space.fold_in(lists)
    for modality in space.modalities:
        same = (folded.codes[modality] == space.user_codes[modality][known]).float().mean(0)
        print(f"fold-in, the same {modality} token by level:", " ".join(f"{share:.3f}" for share in same))
    best = [space.recommend(users, 10, lists)[0] for users in (known, folded.fused)]
    overlap = (best[0].unsqueeze(2) == best[1].unsqueeze(1)).any(2).float().mean()
    print(f"fold-in, overlap of top-10: {overlap:.3f}")


def meaning(split: Split, space: PreferenceSpace, share: float = 0.2) -> None:
    """Does the text of an item that the glossary has not read tell its first token? The guess is the token with most
    of its words in the text, by chance among equals."""
    generator = torch.Generator().manual_seed(0)
    items: list[Item] = list(split.train.items)
    held = torch.rand(len(items), generator=generator) < share
    read = [replace(item, text="") if out else item for item, out in zip(items, held.tolist(), strict=True)]
    glossary = build_glossary(space, read)
    if not glossary:
        print("meaning: the items have no text")
        return
    rows = [row for row in held.nonzero().squeeze(1).tolist() if items[row].text]
    vocabulary: dict[str, int] = {}
    texts = ItemLists.of([words_of(items[row], vocabulary) for row in rows])
    for modality in space.modalities:
        codes = residual.encode(space.item_preference[modality][rows], space.codebooks[modality])[:, 0]
        n_codes = space.codebooks[modality].shape[1]
        table = torch.zeros(len(vocabulary), n_codes)
        for code in range(n_codes):
            listed = glossary[token_name(modality, 0, code)]["words"]
            table[[vocabulary[word] for word in listed if word in vocabulary], code] = 1
        score = texts.mean(table)
        score = score + 1e-6 * torch.rand(score.shape, generator=generator)
        guess = score.argmax(1)
        right = (guess == codes).float().mean()
        order = torch.stack([torch.randperm(len(codes), generator=generator) for _ in range(100)])
        shuffled = (guess == codes[order]).float().mean(1)
        print(
            f"meaning, {modality}: {right:.3f} of {len(rows)} held-out items' first tokens from their text, shuffled "
            f"{shuffled.mean():.3f} (highest of 100: {shuffled.max():.3f}), {right / shuffled.mean():.1f} times"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
