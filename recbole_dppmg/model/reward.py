"""The reward of stage 2b, term by term, as plain functions of tensors.

For user u, item i and a group of G texts and G images made for that pair:

    R = w_p p + w_c c + w_a a + w_y y,   each term normalised within its group before the sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def personalization(content: Tensor, user: Tensor, others: Tensor) -> Tensor:
    """p(x) = s(u, x) - log mean exp_{u'} s(u', x): close to this user, not to everyone.

    Args:
        content: (..., G, d), generated content in the space of preferences, g_m(enc_m(x)).
        user: (..., d), the user's quantized preference q_u.
        others: (..., N, d), quantized preferences of random users.

    Returns:
        (..., G).

    >>> x, u = torch.tensor([[1.0, 0.0]]), torch.tensor([1.0, 0.0])
    >>> personalization(x, u, torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    tensor([1.])
    """
    own = (content * user.unsqueeze(-2)).sum(-1)
    other = content @ others.transpose(-1, -2)
    return own - (other.logsumexp(-1) - torch.log(torch.tensor(float(other.shape[-1]))))


def consistency(texts: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """c: mean cosine of each text to the group's images, and of each image to the group's texts.

    Args:
        texts, images: (..., G, d) unit vectors of the joint space.

    Returns:
        (..., G) for the texts and (..., G) for the images.

    >>> t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> consistency(t, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    (tensor([1., 0.]), tensor([0.5000, 0.5000]))
    """
    cosine = texts @ images.transpose(-1, -2)
    return cosine.mean(-1), cosine.mean(-2)


def fidelity(content: Tensor, item: Tensor) -> Tensor:
    """a: cosine of generated content (..., G, d) to its item (..., d), unit vectors; returns (..., G).

    >>> fidelity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    return (content * item.unsqueeze(-2)).sum(-1)


def normalise(term: Tensor) -> Tensor:
    """Zero mean and unit spread within the group (..., G); the statistics carry no gradient.

    >>> normalise(torch.tensor([1.0, 3.0]))
    tensor([-0.7071,  0.7071])
    """
    reference = term.detach()
    spread = reference.std(-1, keepdim=True).clamp_min(1e-6)
    return (term - reference.mean(-1, keepdim=True)) / spread


def combine(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """R: the weighted sum of terms (..., G), each normalised within its group.

    >>> combine({"p": torch.tensor([1.0, 3.0])}, {"p": 2.0})
    tensor([-1.4142,  1.4142])
    """
    return torch.stack([weights[name] * normalise(term) for name, term in terms.items()]).sum(0)
