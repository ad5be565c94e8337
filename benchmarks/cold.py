"""Items and users that training never saw.

    python -m benchmarks.cold --data=ml-100k

*Items*: a tenth of the items is taken out of training; each user is then ranked all items that were not in training
for them, and what counts is how many of the removed ones that they liked are found; `DPPMG by content` ranks by
`<h_u^m, g_m(f_i)>`, the user's preference for the item's content, on which being liked has no say. *Users*: a tenth of
the users is taken out; they are folded in from their training items and compared with themselves in a model trained
with them.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import Split, folder_of, load, pairs_of
from benchmarks.peers import fit
from recbole_dppmg.config import parse_arguments
from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.evaluation.ranking import RankingTask, evaluate


def main(argv: list[str]) -> None:
    keys = parse_arguments(argv)
    data, seed = str(keys.pop("data", "ml-100k")), int(keys.pop("seed", 0))
    split = load(*folder_of(data), keys)
    items(split, seed)
    users(split, seed)


def without(split: Split, taken: Tensor, column: int) -> Split:
    """The split without the interactions of some users (column 0) or items (1) in training and validation."""
    parts = {}
    for name in ("train", "valid"):
        part = getattr(split, name)
        parts[name] = part.copy(part.inter_feat[~taken[pairs_of(part)[column]]])
    return replace(split, **parts)


def items(split: Split, seed: int, share: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    present = torch.zeros(split.n_items, dtype=torch.bool)
    for modality in ("text", "image"):
        present |= split.train.item_features(modality)[1]
    removed = (torch.rand(split.n_items, generator=generator) < share) & present
    warm = without(split, removed, 1)
    everything = torch.cat([pairs_of(part) for part in (split.train, split.valid, split.test)], 1)
    positives = ItemLists.from_pairs(*everything[:, removed[everything[1]]], split.n_users)
    history = ItemLists.from_pairs(*warm.pairs, split.n_users)
    who = ((positives.sizes > 0) & (history.sizes > 0)).nonzero().squeeze(1)
    task = RankingTask(who, positives.take(who), history.take(who), split.n_items)
    contents = [split.train.item_features(m) for m in ("text", "image")]
    unit = [F.normalize(f, dim=1) * p.unsqueeze(1) for f, p in contents if p.any()]

    def by_content(users: Tensor) -> Tensor:
        return sum(F.normalize(history.take(users).mean(table), dim=1) @ table.T for table in unit)

    def at_random(users: Tensor) -> Tensor:
        return torch.rand(len(users), split.n_items, generator=generator)

    model = fit("DPPMG", warm, {}, seed).notes["model"]
    space = model.space()
    content = {m: split.train.item_features(m) for m in space.modalities}
    placed = {m: space.project(m, features) * present.unsqueeze(1) for m, (features, present) in content.items()}

    def by_preference(users: Tensor) -> Tensor:
        return sum(space.user_preference[m][users] @ table.T for m, table in placed.items())

    ranked = {"DPPMG": model.scores, "DPPMG by content": by_preference}
    ranked |= {"content kNN": by_content, "random": at_random}
    print(f"{int(removed.sum())} items removed, {len(who)} users who liked some of them; Recall@20, NDCG@20")
    for name, scores in ranked.items():
        told = []
        for among, chosen in (("all items", None), ("removed items", removed)):

            def table(users: Tensor, scores=scores, chosen=chosen) -> Tensor:
                found = scores(users)
                return found if chosen is None else found.masked_fill(~chosen, -torch.inf)

            found = evaluate(table, task, (20,), ["recall", "ndcg"])
            told.append(f"among {among} {found['recall@20']:.4f} {found['ndcg@20']:.4f}")
        print(f"  {name:16} {', '.join(told)}", flush=True)


def users(split: Split, seed: int, share: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    removed = torch.rand(split.n_users, generator=generator) < share
    spaces = [fit("DPPMG", part, {}, seed).notes["model"].space() for part in (split, without(split, removed, 0))]
    task = split.task("test")
    rows = removed[task.users].nonzero().squeeze(1)
    task = RankingTask(task.users[rows], task.positives.take(rows), task.history.take(rows), split.n_items)
    folded = spaces[1].fold_in(spaces[0].history.take(task.users))
    place = torch.zeros(split.n_users, dtype=torch.int64)
    place[task.users] = torch.arange(len(task.users))
    found = {
        "trained": evaluate(spaces[0].scores, task, (20,), ["ndcg"])["ndcg@20"],
        "folded in": evaluate(lambda u: spaces[1].scores(folded.fused[place[u]]), task, (20,), ["ndcg"])["ndcg@20"],
    }
    told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    print(f"{len(rows)} users removed; NDCG@20 {told}: {found['folded in'] / found['trained']:.1%} kept")


if __name__ == "__main__":
    main(sys.argv[1:])
