"""The judge: a preference model that no training has seen, which says how much a user likes generated content.

It has another seed than the model that is judged, learns from training and validation interactions, and reads
content through encoders of its own, so that what flatters the reward does not flatter it by the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_dppmg.data.encoders import image_encoder, text_encoder
from recbole_dppmg.data.images import to_tensor
from recbole_dppmg.errors import DataError
from recbole_dppmg.model.joint_space import JointSpace
from recbole_dppmg.model.space import PreferenceSpace

#: The judge's own text encoder: see `WordEncoder`.
WORDS = "words"
_BATCH = 32
_VOCABULARY = 4096

#: Maps generated contents, texts or images, to frozen features float32 (N, D).
Reader = Callable[[Sequence], Tensor]


class WordEncoder:
    """Unit-length TF-IDF of the words that at least two of the catalogue's texts have: no network that a generator
    could have learned to please.

    Args:
        texts: the catalogue's.

    Raises:
        DataError: there is no such word.
    """

    def __init__(self, texts: Sequence[str]):
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            self._vectorizer = TfidfVectorizer(min_df=2, max_features=_VOCABULARY, sublinear_tf=True).fit(texts)
        except ValueError as error:
            raise DataError(
                f"judge: the catalogue's {len(texts)} texts have no word in common ({error}); "
                f"give --judge_text_encoder another encoder"
            ) from error

    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 (N, V); a text without a known word gets zeros."""
        return torch.from_numpy(self._vectorizer.transform(texts).toarray()).float()


def reader(modality: str, encoder: str) -> Reader:
    """How generated contents of a modality are read with the encoder of that name."""
    return text_encoder(encoder).encode if modality == "text" else _image_reader(encoder)


def _image_reader(name: str) -> Reader:
    encoder = image_encoder(name)

    @torch.no_grad()
    def read(images: Sequence) -> Tensor:
        groups = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return torch.cat([encoder(to_tensor(group)) for group in groups])

    return read


@dataclass(frozen=True)
class Judge:
    """An independent preference model with a joint space and readers of its own.

    `features` are those of the catalogue, per modality float32 (I, D) with a mask (I,); `encoders` names what reads.
    """

    space: PreferenceSpace
    joint: JointSpace | None
    readers: Mapping[str, Reader]
    features: Mapping[str, tuple[Tensor, Tensor]]
    encoders: Mapping[str, str]
    seed: int

    def scores(self, modality: str, users: Tensor, features: Tensor) -> Tensor:
        """How much each user of a group likes each of the group's contents.

        Args:
            users: int64 (N, G).
            features: float32 (N, G, D), of generated contents.

        Returns:
            float (N, G users, G contents).
        """
        content = self.space.project(modality, features.flatten(0, 1)).view(*features.shape[:2], -1)
        return self.space.user_preference[modality][users] @ content.transpose(1, 2)

    def auc(self, modality: str, pairs: Tensor, seed: int, sample: int = 2000) -> Tensor:
        """Whether the judge can judge: for (user, item) pairs that it has not seen, the share of other items without
        a part in the user's history whose own content it likes less.

        Args:
            pairs: int64 (P, 2); a random `sample` of those whose item shows the modality is taken.

        Returns:
            float64 (at most `sample`,), 0.5 in the mean for a blind judge.
        """
        features, present = self.features[modality]
        pairs = pairs[present[pairs[:, 1]]]
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:sample]]
        content = self.space.project(modality, features)
        users, items = pairs.T
        table = self.space.user_preference[modality][users] @ content.T
        own = table.gather(1, items.unsqueeze(1))
        below = (table < own).double() + 0.5 * (table == own).double()
        others = present.double().repeat(len(pairs), 1)
        self.space.history.take(users).mask_(others, 0.0)
        others.scatter_(1, items.unsqueeze(1), 0.0)
        return (below * others).sum(1) / others.sum(1).clamp_min(1)
