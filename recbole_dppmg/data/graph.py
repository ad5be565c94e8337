"""The graphs that preferences travel on: users with items, and items with items of similar content."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric import EdgeIndex


class Graph:
    """An undirected graph without weights of its own, with the product that LightGCN propagates by.

    `propagate` multiplies by `A_hat = D^-1/2 A D^-1/2` (arXiv 2002.02126). The scaling is kept outside of the
    sparse product, so that the product is that of a plain symmetric 0/1 matrix, whose backward is itself.
    """

    def __init__(self, edges: Tensor, size: int):
        """Args: edges, int64 (2, E), each undirected edge once or twice; size, the number of nodes."""
        both = torch.cat([edges, edges.flip(0)], 1)
        keys = torch.unique(both[0] * size + both[1])  # sorted by row, then by column
        index = torch.stack([keys // size, keys % size])
        self.edges = EdgeIndex(index, sparse_size=(size, size), sort_order="row", is_undirected=True)
        self.degree = torch.bincount(index[0], minlength=size).to(torch.float32)
        self.scale = self.degree.clamp_min(1).rsqrt().unsqueeze(1)

    def to(self, device: torch.device) -> Graph:
        """Move the graph; returns itself."""
        self.edges, self.degree, self.scale = (
            self.edges.to(device),
            self.degree.to(device),
            self.scale.to(device),
        )
        return self

    def sum(self, x: Tensor) -> Tensor:
        """Sum over neighbours: float (N, D) to (N, D); zero for a node without any."""
        return self.edges.matmul(x)

    def propagate(self, x: Tensor) -> Tensor:
        """`A_hat x`: float (N, D) to (N, D)."""
        return self.scale * self.edges.matmul(self.scale * x)


def user_item_graph(users: Tensor, items: Tensor, n_users: int, n_items: int) -> Graph:
    """The bipartite graph of training interactions; item i is node `n_users + i`.

    Args:
        users, items: int64 (E,), one entry per training interaction; repetitions count once.
    """
    return Graph(torch.stack([users, items + n_users]), n_users + n_items)


def knn_graph(features: Tensor, present: Tensor, k: int, budget: int = 2**28) -> Graph:
    """Items joined with their k nearest by cosine (FREEDOM, arXiv 2211.06924), as an undirected graph.

    Args:
        features: float32 (I, D).
        present: bool (I,), the items that have the modality; the others get no edges.
        k: neighbours per item.
        budget: bytes for the block of similarities that is in memory at a time; never I x I.
    """
    nodes = present.nonzero().squeeze(1)
    k = min(k, len(nodes) - 1)
    if k < 1:
        return Graph(torch.zeros(2, 0, dtype=torch.int64), len(features))
    unit = torch.nn.functional.normalize(features[nodes], dim=-1)
    rows = max(1, budget // (4 * len(nodes)))
    nearest = []
    for start in range(0, len(nodes), rows):
        cosine = unit[start : start + rows] @ unit.T
        own = torch.arange(start, start + len(cosine))
        cosine[own - start, own] = -2  # an item is not its own neighbour
        nearest.append(cosine.topk(k).indices)
    neighbours = nodes[torch.cat(nearest)]
    return Graph(torch.stack([nodes.repeat_interleave(k), neighbours.flatten()]), len(features))
