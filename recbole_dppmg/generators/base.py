"""What a generator is to the rest of the package, and how one is found by name.

A head sees preference tokens, item content and a seed, never RecBole. The same seed and the same inputs give
the same output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.types import ImageRequest, ImageResult, Item, TextRequest, TextResult

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recbole_dppmg.model.space import PreferenceSpace

HEADS = {
    "text": {
        "causal_lm": "recbole_dppmg.generators.causal_lm:CausalLMHead",
        "openai": "recbole_dppmg.generators.openai:OpenAIHead",
        "template": "recbole_dppmg.generators.baselines:TemplateHead",
    },
    "image": {
        "diffusion": "recbole_dppmg.generators.diffusion:DiffusionHead",
        "nearest": "recbole_dppmg.generators.baselines:NearestHead",
    },
}


@dataclass(frozen=True)
class Catalogue:
    """What a head may want to know beside the codebooks: where items lie, their content by row, and what each
    token stands for. A head that has a method `attach(catalogue)` is given it after it is built."""

    space: PreferenceSpace
    items: Sequence[Item]
    glossary: Mapping[str, Mapping[str, list[str]]]


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


def build_head(
    modality: str,
    name: str,
    codebooks: Mapping[str, Tensor],
    settings: Any,
    seed: int,
    catalogue: Catalogue | None = None,
) -> Any:
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
    built = head(getattr(settings, f"{modality}_generator"), codebooks, settings, seed)
    if catalogue is not None and hasattr(built, "attach"):
        built.attach(catalogue)
    return built
