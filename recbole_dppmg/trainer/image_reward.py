"""How the image head follows the reward: through the image (ReFL), or without a gradient of it (DDPO)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.generators.grpo import grpo_loss
from recbole_dppmg.types import ImageRequest

if TYPE_CHECKING:
    from recbole_dppmg.generators.diffusion import DiffusionHead

_PASSES = 2
_CLIP = 1e-4  # arXiv 2305.13301, appendix; of a log-density that is a mean over the latents' numbers


class ImageLearner(Protocol):
    """Draws groups of images, then moves the head towards those that were rewarded."""

    def draw(self, requests: Sequence[ImageRequest], seed: int) -> Tensor:
        """Images float32 (N, 3, size, size) in [0, 1] on the CPU; equal requests get different noise."""
        ...

    def learn(self, reward: Tensor, replay: Callable[[], Tensor]) -> Tensor:
        """Take a step by the reward (N,) of what was drawn last, normalised within its groups, and by the loss that
        `replay` gives; returns how far the tokens moved the prediction, ()."""
        ...


class ReFL:
    """The reward's own gradient through one denoising step (arXiv 2304.05977)."""

    def __init__(self, head: DiffusionHead, optimizer: torch.optim.Optimizer, drift: float):
        self.head, self.optimizer, self.weight = head, optimizer, drift

    def draw(self, requests: Sequence[ImageRequest], seed: int) -> Tensor:
        images, self._drift = self.head.differentiable_images(requests, seed)
        return images

    def learn(self, reward: Tensor, replay: Callable[[], Tensor]) -> Tensor:
        loss = -reward.mean() + self.weight * self._drift + replay()
        step_down(self.optimizer, self.head.parameters(), loss)
        return self._drift


class DDPO:
    """Policy gradient over the denoising steps (arXiv 2305.13301): clipped ratios, advantages within a group; two
    passes over a random half of the steps.

    Raises:
        ConfigError: the head is not one that denoises.
    """

    def __init__(self, head: DiffusionHead, optimizer: torch.optim.Optimizer, drift: float):
        from recbole_dppmg.generators.ddpo import DenoisingPolicy
        from recbole_dppmg.generators.diffusion import DiffusionHead

        if not isinstance(head, DiffusionHead):
            raise ConfigError(f"image_reward: 'ddpo' needs image_head: diffusion, not {head.name}; take refl")
        if head.settings.sampling_steps < 2:
            raise ConfigError("image_reward: 'ddpo' learns from draws between steps; set sampling_steps to 2 or more")
        self.policy, self.optimizer, self.weight = DenoisingPolicy(head), optimizer, drift

    def draw(self, requests: Sequence[ImageRequest], seed: int) -> Tensor:
        self._walk, self._seed = self.policy.walk(requests, seed), seed
        return self._walk.images

    def learn(self, reward: Tensor, replay: Callable[[], Tensor]) -> Tensor:
        walk, parameters = self._walk, self.policy.head.parameters()
        steps = walk.plain.shape[1]
        chosen = torch.randperm(steps, generator=torch.Generator().manual_seed(self._seed))[: -(-steps // 2)].tolist()
        counted = torch.ones(len(reward), 1, dtype=torch.bool, device=walk.latents.device)
        old: dict[int, Tensor] = {}
        for _ in range(_PASSES):
            self.optimizer.zero_grad(set_to_none=True)
            moved = torch.zeros(())
            for n in chosen:  # one step's graph at a time
                new, drift = self.policy.log_probs(walk, n)
                new = new.unsqueeze(1)
                before = old.setdefault(n, new.detach())
                loss = grpo_loss(new, before, before, reward, counted, kl=0.0, clip=(_CLIP, _CLIP))
                ((loss + self.weight * drift) / len(chosen)).backward()
                moved += drift.detach().cpu() / len(chosen)
            replay().backward()
            _apply(self.optimizer, parameters)
        return moved


def step_down(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor) -> None:
    """One step down a loss, its gradient clipped to length 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    _apply(optimizer, parameters)


def _apply(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """One step down the gradients that were gathered, clipped to length 1."""
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
