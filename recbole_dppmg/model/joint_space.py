"""The joint space J: where a text and an image can be compared.

Two projection heads over the frozen encoders, trained by symmetric InfoNCE (CLIP, arXiv 2103.00020) on the
catalogue's own pairs of text and image. Unlike CLIP it knows only what the catalogue shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_dppmg.progress import progress

_WIDTH = 128
_BATCH = 256
_HELD_OUT = 0.1


class JointSpace(nn.Module):
    """Maps text features (N, D_text) and image features (N, D_image) to unit vectors (N, 128)."""

    def __init__(self, text_width: int, image_width: int):
        super().__init__()
        self.text = _head(text_width)
        self.image = _head(image_width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, modality: str, features: Tensor) -> Tensor:
        return F.normalize(getattr(self, modality)(features), dim=-1)

    def items(self, text: Tensor, image: Tensor) -> Tensor:
        """Where items with these text and image features are: unit vectors (N, 128) between the two."""
        return F.normalize(self("text", text) + self("image", image), dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """All weights, for safetensors."""
        return dict(self.state_dict())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> JointSpace:
        """The space that `tensors()` described, frozen."""
        space = cls(tensors["text.0.weight"].shape[1], tensors["image.0.weight"].shape[1])
        space.load_state_dict(tensors)
        return space.eval().requires_grad_(False)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * _WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * _WIDTH, _WIDTH))


def train_joint_space(text: Tensor, image: Tensor, epochs: int, seed: int) -> tuple[JointSpace, dict[str, float]]:
    """Train on pairs of features of the same item.

    Args:
        text: float32 (N, D_text), frozen text features.
        image: float32 (N, D_image), frozen image features of the same items.

    Returns:
        the frozen space, and `retrieval.recall@10`, the share of held-out texts (a tenth of the pairs) whose
        image is among the ten nearest of the held-out images, with `retrieval.pairs`, their number.
    """
    with torch.random.fork_rng(devices=[]):  # dropout and initial weights draw from the global generator
        torch.manual_seed(seed)
        order = torch.randperm(len(text))
        held_out = max(1, int(len(text) * _HELD_OUT))
        test, train = order[:held_out], order[held_out:]
        space = JointSpace(text.shape[1], image.shape[1])
        optimizer = torch.optim.AdamW(space.parameters(), lr=1e-3, weight_decay=0.05)
        for _ in progress(range(epochs), "joint space", unit="epoch"):
            for rows in train[torch.randperm(len(train))].split(_BATCH):
                loss = contrastive_loss(space("text", text[rows]), space("image", image[rows]), space.log_scale.exp())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    space.eval().requires_grad_(False)
    similarity = space("text", text[test]) @ space("image", image[test]).T
    rank = (similarity > similarity.diagonal().unsqueeze(1)).sum(1)
    return space, {
        "retrieval.recall@10": (rank < 10).float().mean().item(),
        "retrieval.pairs": float(held_out),
    }


def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of matching rows of unit vectors (N, d).

    >>> eye = torch.eye(4)
    >>> bool(contrastive_loss(eye, eye, torch.tensor(50.0)) < 1e-6)
    True
    """
    logits = scale * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
