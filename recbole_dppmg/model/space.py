"""The space of preferences: a frozen snapshot of a trained preference model, in plain torch.

Everything after stage 1 works on this: recommending, folding new users in, tokens for the generators, and
the reward, which needs generated content placed among the users' preferences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_dppmg.data.lists import ItemLists
from recbole_dppmg.errors import BundleError
from recbole_dppmg.model import codes as residual
from recbole_dppmg.model.layers import project
from recbole_dppmg.types import MODALITIES

_PROJECTION = ("weight", "bias", "norm_weight", "norm_bias")


@dataclass(frozen=True)
class FoldedUsers:
    """Users made of item lists: per modality codes int64 (B, L) and their sum `quantized` (B, d); per channel
    the unit vectors `preference` (B, d); `fused` (B, C d), to recommend with."""

    codes: dict[str, Tensor]
    quantized: dict[str, Tensor]
    preference: dict[str, Tensor]
    fused: Tensor


@dataclass(frozen=True)
class PreferenceSpace:
    """Users and items by RecBole's internal ids (0 is padding), per channel (`id` and each modality).

    Attributes:
        channels: `id` first, then the modalities that the model was trained with.
        weights: float (C,), positive, sum 1: what each channel adds to a score.
        item_bias: float (I,), b_i, what an item's scores have in common.
        history: the users' training items, with weights where their order counts.
        user_preference, item_preference: per channel float (U, d), (I, d), rows of unit length.
        start, travelled: per channel float (I, d); see `fold_in`.
        codebooks: per modality float (L, K, d).
        user_codes: per modality int64 (U, L).
        projection: per modality the map from frozen features to `start`: weight (d, D), bias, norm_weight,
            norm_bias (d,).
        recency: see `recency_weights`; None: the order of items does not count.
    """

    channels: tuple[str, ...]
    weights: Tensor
    item_bias: Tensor
    history: ItemLists
    user_preference: dict[str, Tensor]
    item_preference: dict[str, Tensor]
    start: dict[str, Tensor]
    travelled: dict[str, Tensor]
    codebooks: dict[str, Tensor]
    user_codes: dict[str, Tensor]
    projection: dict[str, dict[str, Tensor]]
    recency: float | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that have tokens."""
        return tuple(c for c in self.channels if c in self.codebooks)

    @cached_property
    def user_quantized(self) -> dict[str, Tensor]:
        """q_u: per modality float (U, d), the sum of the user's codes."""
        return {m: residual.decode(self.user_codes[m], self.codebooks[m]) for m in self.modalities}

    def fuse(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Concatenate channels (B, d) each to (B, C d), so that a dot product of two is
        `sum_c w_c <h_u^c, h_i^c>`."""
        return torch.cat([w.sqrt() * vectors[c] for w, c in zip(self.weights, self.channels, strict=True)], 1)

    def user_tokens(self, user: int) -> dict[str, tuple[int, ...]]:
        """The preference tokens of a known user, coarse to fine."""
        return {m: tuple(self.user_codes[m][user].tolist()) for m in self.modalities}

    def scores(self, users: Tensor) -> Tensor:
        """Scores of every item, `s(u, i) = b_i + sum_c w_c <h_u^c, h_i^c>`: float (B, I).

        Args:
            users: int64 (B,), known users, or float (B, C d), fused vectors of folded-in ones.
        """
        if not users.is_floating_point():
            users = self.fuse({c: self.user_preference[c][users] for c in self.channels})
        return users @ self._fused_items.T + self.item_bias

    @cached_property
    def _fused_items(self) -> Tensor:
        return self.fuse(self.item_preference)

    def recommend(self, users: Tensor, k: int, exclude: ItemLists | None = None) -> tuple[Tensor, Tensor]:
        """The k best items with their scores, best first.

        Args:
            users: as in `scores`.
            exclude: items not to recommend, per user; None: a known user's training items.

        Returns:
            items int64 (B, k) and scores float (B, k); where fewer than k items are left, -inf.
        """
        if exclude is None and not users.is_floating_point():
            exclude = self.history.take(users)
        scores = self.scores(users)
        scores[:, 0] = -torch.inf  # padding
        if exclude is not None:
            exclude.mask_(scores)
        best, items = scores.topk(min(k, scores.shape[1] - 1))
        return items, best

    def project(self, modality: str, features: Tensor) -> Tensor:
        """g_m: place any content in the space of preferences by its frozen features; differentiable.

        `<q_u^m, g_m(f)>` is the user's preference score of that content.

        Args:
            features: float (B, D), as the modality's encoder gives them.

        Returns:
            float (B, d), rows of unit length.
        """
        return F.normalize(project(features, **self.projection[modality]), dim=-1)

    def fold_in(self, lists: ItemLists | Sequence[Sequence[int]]) -> FoldedUsers:
        """Users who were not trained, from their items: the model's own rule without a vector of their own.

        A user's vector is `mean_i x_i + sqrt(n) mean_i sum_l E_i^l / sqrt(deg_i)`, up to its length, with
        `start` x_i and `travelled` the inner sum, and weighted means where the order of items counts. A user
        without items gets the average preference.

        Args:
            lists: each from the oldest item to the latest.
        """
        if not isinstance(lists, ItemLists):
            lists = ItemLists.of(lists, self.recency)
        tables = {c: (lists.mean(self.start[c]), lists.mean(self.travelled[c])) for c in self.channels}
        return self._folded(tables, lists.sizes)

    def leave_one_out(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Codes of known users folded in from their training items without one of them, so that what is then
        taught or scored about that item does not come from itself.

        Args:
            users, items: int64 (P,), pairs; an item that is not in the user's list changes nothing.

        Returns:
            per modality int64 (P, L).
        """
        lists = self.history.take(users)
        found = lists.items == items[lists.rows]
        held = lists.rows[found]
        share = torch.zeros(len(users)).index_put_((held,), lists.shares[found]).unsqueeze(1)
        known, which = torch.unique(users, return_inverse=True)
        own = self.history.take(known)
        tables = {
            c: tuple(
                (own.mean(table)[which] - share * table[items]) / (1 - share).clamp_min(1e-6)
                for table in (self.start[c], self.travelled[c])
            )
            for c in self.channels
        }
        return self._folded(tables, lists.sizes.index_add(0, held, -torch.ones_like(held))).codes

    def _folded(self, tables: Mapping[str, tuple[Tensor, Tensor]], sizes: Tensor) -> FoldedUsers:
        count = sizes.unsqueeze(1).sqrt()
        preference = {}
        for channel, (start, travelled) in tables.items():
            vector = F.normalize(start + count * travelled, dim=-1)
            average = F.normalize(self.user_preference[channel][self.history.sizes > 0].mean(0), dim=-1)
            preference[channel] = torch.where(sizes.unsqueeze(1) > 0, vector, average)
        codes = {m: residual.encode(preference[m], self.codebooks[m]) for m in self.modalities}
        quantized = {m: residual.decode(codes[m], self.codebooks[m]) for m in self.modalities}
        return FoldedUsers(codes, quantized, preference, self.fuse(preference))

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for safetensors; `from_tensors` reads it back."""
        named = {"weights": self.weights, "item_bias": self.item_bias}
        named |= {"history.offsets": self.history.offsets, "history.items": self.history.items}
        if self.recency is not None:
            named |= {"history.weights": self.history.weights, "recency": torch.tensor(self.recency)}
        for field in ("user_preference", "item_preference", "start", "travelled", "codebooks", "user_codes"):
            named |= {f"{field}.{channel}": tensor for channel, tensor in getattr(self, field).items()}
        for modality, parts in self.projection.items():
            named |= {f"projection.{modality}.{part}": tensor for part, tensor in parts.items()}
        return named

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> PreferenceSpace:
        """The space from `tensors()`.

        Raises:
            BundleError: a tensor is missing or its shape does not fit the others.
        """

        def group(field: str) -> dict[str, Tensor]:
            return {c: named[f"{field}.{c}"] for c in ("id", *MODALITIES) if f"{field}.{c}" in named}

        try:
            space = cls(
                channels=tuple(group("item_preference")),
                weights=named["weights"],
                item_bias=named["item_bias"],
                history=ItemLists(named["history.offsets"], named["history.items"], named.get("history.weights")),
                user_preference=group("user_preference"),
                item_preference=group("item_preference"),
                start=group("start"),
                travelled=group("travelled"),
                codebooks=group("codebooks"),
                user_codes=group("user_codes"),
                projection={
                    m: {part: named[f"projection.{m}.{part}"] for part in _PROJECTION} for m in group("codebooks")
                },
                recency=named["recency"].item() if "recency" in named else None,
            )
            space._check()
        except (KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
            raise BundleError(f"preference space: {error}; the bundle is damaged, copy or train it again") from error
        return space

    def _check(self) -> None:
        n_users, (n_items, width) = len(self.history.offsets) - 1, self.item_preference["id"].shape
        floats: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
            "weights": (self.weights, (len(self.channels),)),
            "item_bias": (self.item_bias, (n_items,)),
        }
        tables = {"user_preference": n_users}
        tables |= dict.fromkeys(("item_preference", "start", "travelled"), n_items)
        for field, rows in tables.items():
            for channel in self.channels:
                floats[f"{field}.{channel}"] = (getattr(self, field).get(channel), (rows, width))
        if self.channels != ("id", *self.modalities):
            raise ValueError(f"codebooks of {', '.join(self.modalities) or 'nothing'}, but channels {self.channels}")
        for m in self.modalities:
            codebook = self.codebooks[m]
            floats[f"codebooks.{m}"] = (codebook, (*codebook.shape[:2], width))
            columns = self.projection[m]["weight"].shape[-1]
            for part, tensor in self.projection[m].items():
                floats[f"projection.{m}.{part}"] = (tensor, (width, columns) if part == "weight" else (width,))
        for name, (tensor, shape) in floats.items():
            if tensor is None or tuple(tensor.shape) != shape or 0 in shape:
                found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise ValueError(f"{name} {found}, expected {shape}")
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise ValueError(f"{name} is not of finite float32 numbers")
        if (self.weights < 0).any():
            raise ValueError("weights has a negative one")
        self._check_history(n_items)
        for m in self.modalities:
            levels, n_codes, _ = self.codebooks[m].shape
            codes = self.user_codes[m]
            fits = codes.dtype == torch.int64 and tuple(codes.shape) == (n_users, levels)
            if not fits or int(codes.min()) < 0 or int(codes.max()) >= n_codes:
                raise ValueError(f"user_codes.{m} does not fit codebooks.{m}")

    def _check_history(self, n_items: int) -> None:
        offsets, items, weights = self.history
        if offsets.dtype != torch.int64 or items.dtype != torch.int64 or offsets.dim() != 1 or items.dim() != 1:
            raise ValueError("history is not of int64 rows")
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(items) or (offsets.diff() < 0).any():
            raise ValueError("history.offsets does not fit history.items")
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < n_items:
            raise ValueError("history.items has an item that is not there")
        if weights is not None:
            good = weights.shape == items.shape and weights.dtype == torch.float32
            if not good or not ((weights > 0) & (weights <= 1)).all():
                raise ValueError("history.weights does not fit history.items")
        if (self.recency is None) != (weights is None) or (self.recency is not None and not self.recency > 0):
            raise ValueError("recency does not fit history.weights")
