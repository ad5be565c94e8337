"""Which user was a card made for? The item is held fixed, so that only what the tokens add can tell.

For an item, G users each get a card. The judge scores every user with every card; a user's scores are centred over
the group's cards, since a user who likes the item likes all of them, and each card is given to the user who then
likes it best.
"""

from __future__ import annotations

from torch import Tensor

_TIE = 1e-6  # scores nearer than this are the same: a mean over equal numbers need not be that number


def centred(scores: Tensor) -> Tensor:
    """Scores float (..., G users, G cards), each user's over the group's cards made zero in the mean."""
    scores = scores.double()
    return scores - scores.mean(-1, keepdim=True)


def identify(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each card's own user is found, and at which rank.

    Args:
        scores: float (N, G, G), of user u with the card made for user c at [:, u, c].

    Returns:
        top-1, float64 (N, G): 1, or 1 / t where t users share the best place, or 0; and rank, float64 (N, G), from
        1, the middle one of those who share a place. Cards that are the same for all get 1 / G and (G + 1) / 2.

    >>> identify(torch.eye(3)[None])[0]
    tensor([[1., 1., 1.]], dtype=torch.float64)
    >>> [values.tolist() for values in identify(torch.ones(1, 2, 2))]
    [[[0.5, 0.5]], [[1.5, 1.5]]]
    """
    table = centred(scores)
    own = table.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return place((table - own).transpose(-1, -2))


def place(differences: Tensor) -> tuple[Tensor, Tensor]:
    """Top-1 and rank as in `identify`, from how much better each candidate is than the right one, which is among
    them: float (..., G)."""
    better = (differences > _TIE).sum(-1)
    same = (differences.abs() <= _TIE).sum(-1)
    return (better == 0).double() / same, 1 + better + (same.double() - 1) / 2


def swap_gap(scores: Tensor) -> Tensor:
    """Token-swap gap, float64 (N, G): a user's score with the card of their own tokens, less the mean with those of
    the group's other users; same item, same seed. `scores` as in `identify`.

    >>> swap_gap(torch.tensor([[[3.0, 1.0], [0.0, 2.0]]]))
    tensor([[2., 2.]], dtype=torch.float64)
    """
    size = scores.shape[-1]
    return centred(scores).diagonal(dim1=-2, dim2=-1) * size / max(1, size - 1)


def retrieve(queries: Tensor, keys: Tensor) -> Tensor:
    """R@1 of each query among the keys of its group, float64 (N, G): its own key has its own place.

    Args:
        queries, keys: float (N, G, d), unit vectors.

    >>> retrieve(torch.eye(2)[None], torch.eye(2)[None])
    tensor([[1., 1.]], dtype=torch.float64)
    """
    table = (queries @ keys.transpose(-1, -2)).double()
    return place(table - table.diagonal(dim1=-2, dim2=-1).unsqueeze(-1))[0]
