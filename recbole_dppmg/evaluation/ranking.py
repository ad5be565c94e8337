"""Full-sort ranking metrics with RecBole's definitions, in whole arrays.

One block of users at a time: score every item, take out the history, `topk`; then look the hits up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_dppmg.data.lists import ItemLists

_BUDGET = 2**26  # bytes for a block of scores; larger ones only leave the cache behind


@dataclass(frozen=True)
class RankingTask:
    """Whom to rank for: `users` int64 (E,); per row the `positives` to find and the `history` not to rank."""

    users: Tensor
    positives: ItemLists
    history: ItemLists
    n_items: int

    @classmethod
    def of(cls, loader) -> RankingTask:
        """From RecBole's `FullSortEvalDataLoader`: the same users, positives and history."""

        def lists(table) -> ItemLists:
            chosen = [table[user] for user in users.tolist()]
            sizes = torch.tensor([len(items) for items in chosen])
            rows = torch.arange(len(users)).repeat_interleave(sizes)
            return ItemLists.from_pairs(rows, torch.cat(chosen), len(users))

        users = loader.uid_list
        items = loader._dataset.item_num
        return cls(users, lists(loader.uid2positive_item), lists(loader.uid2history_item), items)

    def to(self, device: torch.device) -> RankingTask:
        """A copy on the device."""
        return RankingTask(self.users.to(device), self.positives.to(device), self.history.to(device), self.n_items)


@torch.no_grad()
def best_items(scores: Callable[[Tensor], Tensor], task: RankingTask, k: int) -> Tensor:
    """Each user's k best items that are not history: int64 (E, k), best first.

    Args:
        scores: maps users, int64 (B,), to a new float (B, I) that may be overwritten.
    """
    rows = max(1, _BUDGET // (4 * task.n_items))
    best = []
    for block in torch.arange(len(task.users), device=task.users.device).split(rows):
        table = task.history.take(block).mask_(scores(task.users[block]))
        table[:, 0] = -torch.inf  # padding
        best.append(table.topk(min(k, task.n_items), dim=1).indices)
    return torch.cat(best)


@torch.no_grad()
def hits(scores: Callable[[Tensor], Tensor], task: RankingTask, k: int) -> Tensor:
    """Which of each user's k best items are positives: bool (E, k), best first; `scores` as in `best_items`."""
    best, positives = best_items(scores, task, k), task.positives
    # pairs as numbers: both sides ascend with the row, so one binary search finds all
    known = positives.rows * task.n_items + positives.items
    asked = torch.arange(len(best), device=best.device).unsqueeze(1) * task.n_items + best
    place = torch.searchsorted(known, asked).clamp_max(len(known) - 1)
    return known[place] == asked


def ranking_metrics(
    found: Tensor, sizes: Tensor, topk: Sequence[int], metrics: Sequence[str] | None = None
) -> dict[str, float]:
    """Means over users, named as RecBole names them, e.g. `ndcg@20`.

    Args:
        found: bool (E, max(topk)), from `hits`.
        sizes: int64 (E,), positives per user, at least 1.
        metrics: names out of `METRICS`; None: all.
    """
    hit, sizes = found.double(), sizes.unsqueeze(1)
    rank = torch.arange(1, found.shape[1] + 1, device=found.device)
    gain = torch.log2(rank + 1.0).reciprocal()
    ideal = torch.minimum(sizes, rank)  # how many hits there could be in the first k
    total = hit.cumsum(1)
    first = (hit / rank).cummax(1).values
    average = (total / rank * hit).cumsum(1)
    tables = {
        "recall": total / sizes,
        "mrr": first,
        "ndcg": (hit * gain).cumsum(1) / gain.cumsum(0)[ideal - 1],
        "hit": (total > 0).double(),
        "precision": total / rank,
        "map": average / ideal,
    }
    return {f"{name}@{k}": tables[name][:, k - 1].mean().item() for name in metrics or METRICS for k in topk}


METRICS = ("recall", "mrr", "ndcg", "hit", "precision", "map")


def evaluate(
    scores: Callable[[Tensor], Tensor],
    task: RankingTask,
    topk: Sequence[int] = (10, 20),
    metrics: Sequence[str] | None = None,
) -> dict[str, float]:
    """Rank every item for every user of the task; see `hits` and `ranking_metrics`."""
    return ranking_metrics(hits(scores, task, max(topk)), task.positives.sizes, topk, metrics)
