"""What a run can do with the content that its items have, and what is lost without the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from recbole_dppmg.errors import DataError
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import Item

_PAIRS = 20
_ONE = {"text": "a text", "image": "an image"}
_GENERATED = {"text": "explanations", "image": "generated images"}


class Plan(NamedTuple):
    """`phases` to run; `shown`, the modalities that can be generated, as the catalogue shows how; and one line on what
    of the phases and modalities asked for is `lost`, empty if nothing is."""

    phases: list[str]
    shown: list[str]
    lost: str


def make_plan(settings: Settings, items: Sequence[Item], features: Mapping[str, tuple[Tensor, Tensor]]) -> Plan:
    """What `train_phases` and `modalities` come to. A dataset may lack texts, images or both.

    Args:
        items: one per row, the first is padding.
        features: per modality features (I, D) and a mask (I,) of the items that have any.

    Raises:
        DataError: the dataset has content, and an item has none.
    """
    modalities, wanted = settings.modalities, settings.train_phases
    lacking = [modality for modality in modalities if not features[modality][1].any()]
    _check_items(items, {m: features[m][1] for m in modalities if m not in lacking})
    there = {"text": any(item.text for item in items), "image": any(item.image for item in items)}
    shown = [modality for modality in modalities if there[modality]]
    phases, lost = list(wanted), [f"{modality} tokens" for modality in lacking]
    if "injection" in wanted:
        lost += [_GENERATED[modality] for modality in modalities if modality not in shown]
        phases = phases if shown else ["preference"]
    if "reward" in wanted and (reason := _no_reward(settings, shown, items)):
        phases = [phase for phase in phases if phase != "reward"]
        lost.append(f"the reward phase, {reason}")
    why = f"no item has {' or '.join(_ONE[modality] for modality in lacking)}; " if lacking else ""
    return Plan(phases, shown, f"{why}left out: {', '.join(lost)}" if lost else "")


def _check_items(items: Sequence[Item], present: Mapping[str, Tensor]) -> None:
    """Raises a DataError for the first item that has nothing where others have something."""
    if not present:
        return
    bare = (~sum(present.values()).bool()).nonzero().flatten().tolist()[1:]  # the first is padding
    if bare:
        others = f", nor have {len(bare) - 1} others" if bare[1:] else ""
        raise DataError(
            f"item '{items[bare[0]].id}' has neither text nor image{others}; describe it in the dataset's .item file, "
            "or leave its interactions out"
        )


def _no_reward(settings: Settings, shown: Sequence[str], items: Sequence[Item]) -> str:
    """Why generators cannot be rewarded; empty if they can."""
    given = [key for key in ("text_features", "image_features") if getattr(settings, key)]
    if given:
        return f"for {given[0]} comes without the encoder that could read what is generated"
    both = sum(1 for item in items if item.text and item.image) if len(shown) == 2 else 0
    return f"which needs at least {_PAIRS} items with text and image" if both < _PAIRS else ""
