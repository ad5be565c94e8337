"""A reward of the user's own, `pkg.mod:function` in the key `reward_function`.

    def brightness(modality, contents, items, tokens):
        return contents.mean((1, 2, 3)) if modality == "image" else None

It is called once a step and modality with N contents: for `text` a list of strings, for `image` a float32 tensor
(N, 3, H, W) in [0, 1]; with the N `Item`s they are of and the N users' preference tokens. It returns N numbers, more
is better, or None: it has no say in this modality. With `image_reward: refl` its answer on images must carry
gradient; with `ddpo` it may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.settings import RewardSettings
from recbole_dppmg.types import MODALITIES, Item, PreferenceTokens

_KEY = "reward_function"
_SIDE = 32


class RewardFunction:
    """Calls the function and checks what it answers.

    Args:
        path: `pkg.mod:function`.
        gradient: whether its answer on images must carry gradient.

    Raises:
        ConfigError: it cannot be imported or called.
    """

    def __init__(self, path: str, gradient: bool):
        self.path, self.gradient = path, gradient
        module, _, name = path.partition(":")
        if not module or not name:
            raise ConfigError(f"{_KEY}: '{path}' is not pkg.mod:function; write it so")
        try:
            self._function = getattr(import_module(module), name)
        except Exception as error:  # whatever a user's module raises when it is imported
            raise ConfigError(f"{_KEY}: '{path}' cannot be imported ({error}); check its name and the path") from error
        if not callable(self._function):
            raise ConfigError(f"{_KEY}: '{path}' is no function; name one")

    @staticmethod
    def of(settings: RewardSettings) -> RewardFunction | None:
        """The function that the keys ask for, if they do."""
        path = settings.reward_function
        return RewardFunction(path, settings.image_reward == "refl") if path else None

    def __call__(
        self,
        modality: str,
        contents: Sequence[str] | Tensor,
        items: Sequence[Item],
        tokens: Sequence[PreferenceTokens],
    ) -> Tensor | None:
        """Rewards float32 (N,) on the CPU, or None.

        Raises:
            ConfigError: it raised, answered with another shape, with NaN or infinity, or without a gradient.
        """
        try:
            answer = self._function(modality, contents, items, tokens)
            if answer is None:
                return None
            values = torch.as_tensor(answer).float().cpu()
        except Exception as error:
            self._fault(modality, f"raised {type(error).__name__}: {error}", "mend it", error)
        if values.shape != (len(contents),):
            self._fault(modality, f"gave shape {tuple(values.shape)} for {len(contents)}", "return one for each")
        if not values.isfinite().all():
            bad = int((~values.isfinite()).nonzero()[0])
            self._fault(modality, f"gave {values[bad].item()} for number {bad}", "return finite numbers")
        if modality == "image" and self.gradient and not values.requires_grad:
            self._fault(modality, "gave no gradient", "set image_reward: ddpo, which needs none")
        return values

    def check(self, items: Sequence[Item], levels: int) -> None:
        """Call it on two contents of each modality, so that a fault is told before the long work.

        Raises:
            ConfigError: as from a call.
        """
        users = [dict.fromkeys(MODALITIES, (0,) * levels)] * 2
        images = torch.rand(2, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
        images = images.requires_grad_(self.gradient) * 1  # as generated ones are, no leaf
        for modality, contents in (("text", ["one", "two"]), ("image", images)):
            self(modality, contents, items[:2], users)

    def _fault(self, modality: str, said: str, advice: str, cause: Exception | None = None) -> None:
        raise ConfigError(f"{_KEY}: '{self.path}' on {modality}s {said}; {advice}") from cause
