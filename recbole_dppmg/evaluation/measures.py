"""What is measured of the cards that were made, one value per card or per item, named `<measure>.<condition>`.

Per card: `judge.<modality>.top1`, `.rank` and `.gap` (see `identification`), `personalization.<modality>` (the term
of the reward, in the space that was trained), `consistency.cosine` and `.recall@1` in the trained joint space,
`judge.consistency.cosine` in the judge's, `fidelity.<modality>`, `diversity.<modality>` (mean distance to the cards
of the item's other users), `failed.<modality>`, and where the user wrote of the item `quality.text.rouge_l` and
`.bleu_4` against it.
Per item: `same.<modality>` (the largest share of its users who got the same), `quality.text.*` of
`explanations.measure_texts`, and `quality.image.likeness`, the mean cosine to the nearest catalogue image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.evaluation.explanations import measure_against, measure_texts
from recbole_dppmg.evaluation.generation import Made, Plan
from recbole_dppmg.evaluation.identification import identify, retrieve, swap_gap
from recbole_dppmg.evaluation.judge import Judge, Reader
from recbole_dppmg.generators.prompts import attributes_of, name_of
from recbole_dppmg.model.joint_space import JointSpace
from recbole_dppmg.model.reward import fidelity, personalization

_QUALITY = ("names_item", "attribute_precision", "attribute_recall", "repetition", "distinct_2", "usr", "div", "empty")
_IDENTICAL = 0.999  # cosine of images that nobody can tell apart
_OTHERS = 256


class Measures:
    """Measures the cards of a plan.

    Args:
        readers: how the encoders of the bundle read contents, per modality whose encoder is known.
        joint: the trained joint space, where both are known.
        features: the catalogue's, as those readers give them, per modality float32 (I, D) with a mask (I,).
        seed: of the sets that `consistency.recall@1` retrieves from.
        reviews: what each card's user wrote of its item, N G of them row by row, None where nothing.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        made: Mapping[str, Mapping[str, Made]],
        judge: Judge,
        readers: Mapping[str, Reader],
        joint: JointSpace | None,
        features: Mapping[str, tuple[Tensor, Tensor]],
        seed: int,
        reviews: Sequence[str | None] | None = None,
    ):
        self.reviews = reviews
        self.bundle, self.plan, self.made, self.judge = bundle, plan, made, judge
        self.joint, self.features, self.seed = joint, features, seed
        self.read = {m: _read(found, readers[m]) for m, found in made.items() if m in readers}
        self.judged = {m: _read(found, judge.readers[m]) for m, found in made.items()}

    @torch.no_grad()
    def samples(self) -> dict[str, Tensor]:
        """Every measure under every condition: float (N G,) or (N,)."""
        found: dict[str, Tensor] = {}
        for modality, conditions in self.made.items():
            for condition in conditions:
                for name, values in self._alone(modality, condition).items():
                    found[f"{name}.{condition}"] = values.flatten()
            # what a user gets from the tokens of the group's next user
            for condition, other in (("own", "other"), ("before", "other_before")):
                if condition in conditions:
                    judged = self._judged(modality, self.judged[modality][condition].roll(1, 1))
                    found |= {f"{name}.{other}": values.flatten() for name, values in judged.items()}
        for condition, pair in self._pairs().items():
            for name, values in self._together(*pair).items():
                found[f"{name}.{condition}"] = values.flatten()
        return found

    def scalars(self) -> dict[str, float]:
        """`alike.<modality>`: how far own cards are the same whatever the item; of texts the share, without the
        item's name, of the most frequent one; of images the mean cosine between the items' mean images."""
        found = {}
        if "text" in self.made:
            own = self.made["text"]["own"]
            names = [name_of(self.bundle.items[item]) for item in self.plan.items.tolist()]
            rests = [
                re.sub(re.escape(name), "", own.contents[n], flags=re.I).strip().casefold()
                for name, row in zip(names, own.index.tolist(), strict=True)
                for n in row
            ]
            found["alike.text"] = Counter(rests).most_common(1)[0][1] / len(rests)
        if "image" in self.made:
            means = F.normalize(self.judged["image"]["own"].mean(1), dim=-1)
            number = len(means)
            cosine = (means @ means.T).sum() - number
            found["alike.image"] = (cosine / max(1, number * (number - 1))).item() if number > 1 else 0.0
        return found

    def _alone(self, modality: str, condition: str) -> dict[str, Tensor]:
        made, judged = self.made[modality][condition], self.judged[modality][condition]
        found = self._judged(modality, judged) | {f"failed.{modality}": made.failed().float()}
        unit = F.normalize(judged, dim=-1)
        size = unit.shape[1]
        cosine = unit @ unit.transpose(1, 2)
        found[f"diversity.{modality}"] = (1 - cosine).sum(-1) / max(1, size - 1)
        if modality == "text":
            same = made.index.unsqueeze(1) == made.index.unsqueeze(2)
            same |= torch.tensor([[[a == b for b in row] for a in row] for row in self._texts(made)])
            found |= self._quality(made)
        else:
            same = cosine >= _IDENTICAL
            features, present = self.judge.features[modality]
            nearest = (unit @ F.normalize(features[present], dim=-1).T).amax(-1)
            found["quality.image.likeness"] = nearest.mean(1)
        found[f"same.{modality}"] = same.double().mean(-1).amax(-1)
        if modality in self.read and modality in self.bundle.space.modalities:
            found[f"personalization.{modality}"] = self._personalization(modality, self.read[modality][condition])
        if modality in self.read and self.joint is not None:
            features = self.joint(modality, self.read[modality][condition].flatten(0, 1))
            item = self._items(self.joint)
            found[f"fidelity.{modality}"] = fidelity(features.view(*made.index.shape, -1), item)
        return found

    def _judged(self, modality: str, features: Tensor) -> dict[str, Tensor]:
        scores = self.judge.scores(modality, self.plan.users, features)
        top1, rank = identify(scores)
        name = f"judge.{modality}"
        return {f"{name}.top1": top1, f"{name}.rank": rank, f"{name}.gap": swap_gap(scores)}

    def _personalization(self, modality: str, features: Tensor) -> Tensor:
        space, users = self.bundle.space, self.plan.users.flatten()
        content = space.project(modality, features.flatten(0, 1)).unsqueeze(1)
        active = (space.history.sizes > 0).nonzero().squeeze(1)
        others = active[torch.randperm(len(active), generator=torch.Generator().manual_seed(self.seed))[:_OTHERS]]
        quantized = space.user_quantized[modality]
        return personalization(content, quantized[users], quantized[others].unsqueeze(0))

    def _items(self, joint: JointSpace) -> Tensor:
        rows = self.plan.items
        return joint.items(self.features["text"][0][rows], self.features["image"][0][rows])

    def _pairs(self) -> dict[str, tuple[str, str]]:
        """Conditions under which a card has both a text and an image, as (that of the text, that of the image)."""
        if set(self.made) != {"text", "image"}:
            return {}
        text, image = self.made["text"], self.made["image"]
        both = {condition: (condition, condition) for condition in text if condition in image}
        return both | {"baseline": ("template", "nearest")}

    def _together(self, text: str, image: str) -> dict[str, Tensor]:
        found = {}
        if self.joint is not None and set(self.read) == {"text", "image"}:
            placed = [self._placed(self.joint, m, self.read[m][c]) for m, c in (("text", text), ("image", image))]
            found["consistency.cosine"] = (placed[0] * placed[1]).sum(-1)
            # among cards of any items and users: whole sets of the plan's group size
            size = placed[0].shape[:2].numel()
            order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))
            sets = [p.flatten(0, 1)[order].view(p.shape) for p in placed]
            recall = retrieve(*sets).flatten()
            found["consistency.recall@1"] = torch.empty_like(recall).index_copy_(0, order, recall)
        if self.judge.joint is not None:
            placed = [
                self._placed(self.judge.joint, m, self.judged[m][c]) for m, c in (("text", text), ("image", image))
            ]
            found["judge.consistency.cosine"] = (placed[0] * placed[1]).sum(-1)
        return found

    @staticmethod
    def _placed(joint: JointSpace, modality: str, features: Tensor) -> Tensor:
        return joint(modality, features.flatten(0, 1)).view(*features.shape[:2], -1)

    def _texts(self, made: Made) -> list[list[str]]:
        return [[made.contents[n] for n in row] for row in made.index.tolist()]

    def _quality(self, made: Made) -> dict[str, Tensor]:
        items = [self.bundle.items[item] for item in self.plan.items.tolist()]
        known = sorted({attribute for item in self.bundle.items for attribute in attributes_of(item)})
        rows = [
            measure_texts([item] * len(row), row, known) for item, row in zip(items, self._texts(made), strict=True)
        ]
        found = {f"quality.text.{name}": torch.tensor([row[name] for row in rows]) for name in _QUALITY}
        if self.reviews and any(self.reviews):
            near = measure_against([text for row in self._texts(made) for text in row], self.reviews)
            found |= {f"quality.text.{name}": torch.tensor(values) for name, values in near.items()}
        return found


def _read(found: Mapping[str, Made], reader: Reader) -> dict[str, Tensor]:
    """Features float32 (N, G, D) by condition; equal contents of all conditions are read once."""
    contents, places, known = [], {}, {}
    for condition, made in found.items():
        rows = []
        for content in made.contents:
            key = content if isinstance(content, str) else (content.size, content.tobytes())
            if key not in known:
                known[key] = len(contents)
                contents.append(content)
            rows.append(known[key])
        places[condition] = torch.tensor(rows)
    sizes = {}
    for n, content in enumerate(contents):  # baselines may have images of another size
        sizes.setdefault(getattr(content, "size", None), []).append(n)
    table: Tensor | None = None
    for rows in sizes.values():
        features = reader([contents[n] for n in rows])
        table = features.new_zeros(len(contents), features.shape[1]) if table is None else table
        table[rows] = features
    return {condition: table[places[condition]][made.index] for condition, made in found.items()}
