"""What a generator is to the rest of the package, and how one is found by name.

A head sees preference tokens, item content and a seed, never RecBole. The same seed and the same inputs give
the same output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.types import ImageRequest, ImageResult, TextRequest, TextResult

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADS = {
    "text": {
        "causal_lm": "recbole_dppmg.generators.causal_lm:CausalLMHead",
        "template": "recbole_dppmg.generators.baselines:TemplateHead",
    },
    "image": {"diffusion": "recbole_dppmg.generators.diffusion:DiffusionHead"},
}


class _Head(Protocol):
    name: str

    def parameters(self) -> list[nn.Parameter]:
        """The token-associated parameters, the only ones that training may change."""
        ...

    def save(self, directory: str | Path) -> None:
        """Write the token-associated parameters as safetensors and JSON."""
        ...

    def load(self, directory: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            BundleError: a file is missing, damaged, or of another model.
        """
        ...


class TextHead(_Head, Protocol):
    """Explains items to users."""

    def generate(self, batch: Sequence[TextRequest]) -> list[TextResult]:
        """One result per request, in order; a request that fails gets a result with `error`."""
        ...


class ImageHead(_Head, Protocol):
    """Draws items for users."""

    def generate(self, batch: Sequence[ImageRequest]) -> list[ImageResult]:
        """One result per request, in order; a request that fails gets a result with `error`."""
        ...


def build_head(modality: str, name: str, codebooks: Mapping[str, Tensor], settings: Any, seed: int) -> Any:
    """An untrained head by its name in `HEADS`, or a class of yours as `pkg.mod:Class`.

    The class is called as `Class(model, codebooks, settings, seed)`, where `model` is the setting
    `{modality}_generator` and `codebooks` holds float32 (L, K, d) per modality.

    Raises:
        ConfigError: the name is unknown, or the class cannot be imported.
    """
    known = HEADS[modality]
    path = known.get(name, name)
    if ":" not in path:
        raise ConfigError(f"{modality} head '{name}' is unknown; take one of {', '.join(known)}, or pkg.mod:Class")
    module, _, attribute = path.partition(":")
    try:
        head = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{modality} head '{path}' cannot be imported ({error}); check its name") from error
    return head(getattr(settings, f"{modality}_generator"), codebooks, settings, seed)
