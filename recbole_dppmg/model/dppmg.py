"""DPPMG's preference model under RecBole's contract.

One LightGCN per channel (`id`, `text`, `image`) over the same graph, an item graph per modality, residual
quantization of users per modality. Sizes and losses are this project's choices; the paper that the project
is named after has published none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_dppmg.data.graph import knn_graph, user_item_graph
from recbole_dppmg.data.lists import ItemLists, recency_weights
from recbole_dppmg.data.sampling import SharedNegatives
from recbole_dppmg.model import codes as residual
from recbole_dppmg.model.layers import ContentProjection
from recbole_dppmg.model.losses import alignment_loss, sampled_softmax_loss, softmax_loss
from recbole_dppmg.model.quantizer import Quantizer, default_codes
from recbole_dppmg.model.space import PreferenceSpace
from recbole_dppmg.settings import PreferenceSettings, group_of

_NEGATIVES = 16  # at least, where items are sampled
_ALIGNED = 512  # items per step in the text-image alignment


def _share(rows: Tensor, size: int) -> Tensor:
    """How large a part of the rows each one is: int64 (B,) to float (size,)."""
    ones = torch.full((len(rows),), 1 / len(rows), device=rows.device)
    return ones.new_zeros(size).index_add_(0, rows, ones)


@dataclass(frozen=True)
class Encoded:
    """Per channel: `user` (U, d) and `item` (I, d), rows of unit length; `start` (I, d), where items start;
    `travelled` (I, d), what a user takes from each item by propagation; `own` (U, d), the users' own vectors.
    And `bias` (I,), b_i."""

    user: dict[str, Tensor]
    item: dict[str, Tensor]
    start: dict[str, Tensor]
    travelled: dict[str, Tensor]
    own: dict[str, Tensor]
    bias: Tensor


class DPPMG(GeneralRecommender):
    """Preferences per modality; recommends by `s(u, i) = b_i + sum_c w_c <h_u^c, h_i^c>` with unit vectors h. Items
    that nobody liked in training take no part in it, and get `id` from items of similar content afterwards.

    `dataset` is the training part of a `DPPMGDataset`: its interactions are the graph. It is trained on what a user
    liked at any time, and recommends by what was liked lately (`recency`), where the split is by time.
    """

    input_type = InputType.PAIRWISE  # negatives that RecBole may add are not used; the loss draws its own

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.settings = group_of(PreferenceSettings, config)
        self.size, self.seed, self.step = config["embedding_size"], config["seed"], 0
        users, items = dataset.inter_feat[self.USER_ID], dataset.inter_feat[self.ITEM_ID]
        self.steps_per_epoch = -(-len(users) // config["train_batch_size"])
        self.recency = self._recency(config, dataset)
        weights = (
            recency_weights(users, dataset.inter_feat[config["TIME_FIELD"]], self.recency) if self.recency else None
        )
        self.history = ItemLists.from_pairs(users, items, self.n_users, weights).to(self.device)
        self.graph = user_item_graph(users, items, self.n_users, self.n_items).to(self.device)
        self.liked = self.graph.degree[self.n_users :] > 0  # by anyone in training
        self.rows = min(self.n_users, config["train_batch_size"])  # users in a step's loss
        self.negatives = None
        if self.rows * self.n_items > self.settings.softmax_cells:
            number = max(_NEGATIVES, self.settings.softmax_cells // self.rows)
            self.negatives = SharedNegatives(self.history, self.n_items, number, self.settings.negative_power)
        self.modalities, self.item_graphs = [], {}
        for modality in self.settings.modalities:
            features, present = dataset.item_features(modality)
            if present.any():
                self.modalities.append(modality)
                if self.settings.knn_k:
                    graph = knn_graph(features, present, self.settings.knn_k)
                    self.item_graphs[modality] = graph.to(self.device)
                # buffers move with the model; frozen features are no part of its state
                self.register_buffer(f"{modality}_features", features.to(self.device), persistent=False)
                self.register_buffer(f"{modality}_present", present.to(self.device), persistent=False)
        self.channels = ("id", *self.modalities)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._build()
        self._cache: Encoded | None = None

    def _recency(self, config, dataset) -> float | None:
        """The order of items tells something about what comes next where the split is by time."""
        timed = config["TIME_FIELD"] in dataset.inter_feat.columns and config["eval_args"]["order"] == "TO"
        return self.settings.recency or None if timed else None

    def _build(self) -> None:
        size, settings = self.size, self.settings
        self.bias = nn.Parameter(torch.zeros(self.n_items))
        self.item = nn.Parameter(0.1 * torch.randn(self.n_items, size) * self.liked.cpu().unsqueeze(1))
        self.delta = nn.Parameter(0.1 * torch.randn(self.n_users, size * len(self.channels)))
        self.channel_logit = nn.Parameter(torch.zeros(len(self.channels)))
        dropout = [settings.delta_dropout] + [settings.modality_delta_dropout] * len(self.modalities)
        self.register_buffer("delta_dropout", torch.tensor(dropout), persistent=False)
        widths = {m: self._content(m)[0].shape[1] for m in self.modalities}
        self.projections = nn.ModuleDict({m: ContentProjection(widths[m], size) for m in self.modalities})
        n_codes = settings.quantizer_codes or default_codes(self.n_users - 1)
        self.quantizers = nn.ModuleDict(
            {m: Quantizer(size, settings.quantizer_levels, n_codes, settings.quantizer_decay) for m in self.modalities}
        )

    @property
    def weights(self) -> Tensor:
        """w_c: float (C,), positive, sum 1."""
        return self.channel_logit.softmax(0)

    @property
    def quantizing(self) -> bool:
        """Whether the warm-up before the quantizer's k-means is over."""
        return self.step >= self.settings.quantizer_warmup * self.steps_per_epoch

    def _content(self, modality: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"{modality}_features"), getattr(self, f"{modality}_present")

    def encode(self, delta: Tensor | None = None) -> Encoded:
        """Propagate all channels at once, as columns of one table.

        Args:
            delta: float (U, C d), the users' own vectors; None: the learned ones.
        """
        delta = self.delta if delta is None else delta
        graph = self.graph
        starts = [self.item] + [self.projections[m](*self._content(m)) for m in self.modalities]
        start = torch.cat(starts, 1)
        degree = graph.degree[: self.n_users].clamp_min(1).unsqueeze(1)
        nobody = start.new_zeros(self.n_users, start.shape[1])
        mean = graph.sum(torch.cat([nobody, start]))[: self.n_users] / degree
        layer = total = torch.cat([mean + delta, start])
        sent = layer
        for remaining in reversed(range(self.settings.n_layers)):
            layer = graph.propagate(layer)
            total = total + layer
            sent = sent + layer if remaining else sent
        user, item = self._split(total[: self.n_users]), self._split(total[self.n_users :])
        own = self._split(start)
        for modality, near_graph in self.item_graphs.items():
            near = near_graph.propagate(own[modality])
            item[modality] = item[modality] + (self.settings.n_layers + 1) * near
        travelled = (graph.scale * sent)[self.n_users :]
        return Encoded(
            {c: F.normalize(v, dim=1) for c, v in user.items()},
            {c: F.normalize(v, dim=1) for c, v in item.items()},
            own,
            self._split(travelled),
            self._split(delta),
            self.settings.tau * self.bias,  # learned on the scale of logits
        )

    def _split(self, table: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.channels, table.split(self.size, 1), strict=True))

    def fuse(self, vectors: dict[str, Tensor]) -> Tensor:
        """Channels (B, d) each to (B, C d), so that dot products are scores."""
        return torch.cat([w.sqrt() * vectors[c] for w, c in zip(self.weights, self.channels, strict=True)], 1)

    def losses(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """The weighted terms of the loss of a batch of interactions, int64 (B,) each."""
        settings = self.settings
        generator = torch.Generator(users.device).manual_seed(self.seed * 1_000_003 + self.step)
        draws = torch.rand(self.n_users, len(self.channels), generator=generator, device=users.device)
        kept = (draws >= self.delta_dropout).repeat_interleave(self.size, 1)
        encoded = self.encode(self.delta * kept)
        # few users: each once, else the batch's; either way the shapes do not depend on the draw
        everyone = self.n_users == self.rows
        row = users if everyone else torch.arange(len(users), device=users.device)
        drawn = None
        if self.negatives:
            whose = torch.arange(self.n_users, device=users.device) if everyone else users
            drawn = self.negatives.draw(whose, generator)

        def ranking(user: Tensor, item: Tensor, present: Tensor, tau: float, bias: Tensor) -> Tensor:
            present = present & self.liked
            weight = present[items].float()
            weight = weight / weight.sum().clamp_min(1)
            if drawn is None:
                bias = torch.where(present, bias, -torch.inf)
                return softmax_loss(user, item, row, items, weight, tau, bias)
            negatives, log_q, known = drawn
            bias = torch.where(present, bias, -torch.inf)
            return sampled_softmax_loss(user, item, row, items, weight, tau, bias, negatives, log_q, known)

        user, item = self.fuse(encoded.user), self.fuse(encoded.item)
        user = user if everyone else user.index_select(0, users)
        terms = {"ranking": ranking(user, item, self.liked, settings.tau, self.bias)}
        neutral = torch.zeros_like(self.bias)
        for n, modality in enumerate(self.modalities):
            user, commitment = encoded.user[modality], user.new_zeros(())
            user = user if everyone else user.index_select(0, users)
            if self.quantizing:
                user, commitment = self.quantizers[modality](user, seed=(self.seed * 1_000_003 + self.step) * 2 + n)
            present = self._content(modality)[1]
            terms[f"{modality}.ranking"] = settings.quantized_weight * ranking(
                user, encoded.item[modality], present, settings.modality_tau, neutral
            )
            terms[f"{modality}.commitment"] = settings.commit_weight * commitment
        if len(self.modalities) == 2:
            some = items[:_ALIGNED]
            some = some[torch.stack([self._content(m)[1] for m in self.modalities]).all(0)[some]]
            views = [F.normalize(encoded.start[m][some], dim=1) for m in self.modalities]
            terms["alignment"] = settings.align_weight * alignment_loss(*views, some)
        # of the batch's rows, counted as often as they occur, without a copy of each
        penalty = _share(items, self.n_items) @ self.item.pow(2).sum(1)
        penalty = penalty + _share(users, self.n_users) @ self.delta.pow(2).sum(1)
        terms["l2"] = settings.l2_weight * penalty
        return terms

    def calculate_loss(self, interaction) -> Tensor:
        """RecBole's contract; counts as a training step."""
        terms = self.losses(interaction[self.USER_ID], interaction[self.ITEM_ID])
        self.step += 1
        return torch.stack(list(terms.values())).sum()

    def train(self, mode: bool = True) -> DPPMG:
        self._cache = None
        return super().train(mode)

    @torch.no_grad()
    def encoded(self) -> Encoded:
        """The vectors to recommend with, kept until training goes on: users by their weighted histories, in text and
        image by nothing else, so that a user who is folded in has the tokens of one who is trained; a user without
        training items has the average preference."""
        if self._cache is None or self.training:
            own = F.pad(self.delta[:, : self.size], (0, self.delta.shape[1] - self.size))
            known, encoded = self.history.sizes > 0, self.encode(own)
            count = self.history.sizes.sqrt().unsqueeze(1)
            for channel, table in encoded.user.items():
                if self.history.weights is not None:
                    start, travelled = encoded.start[channel], encoded.travelled[channel]
                    table = self.history.mean(start) + count * self.history.mean(travelled)
                    table = F.normalize(table + encoded.own[channel], dim=1)
                average = F.normalize(table[known].mean(0), dim=0)
                encoded.user[channel] = torch.where(known.unsqueeze(1), table, average)
            self._cache = self._with_new_items(encoded)
        return self._cache

    def _with_new_items(self, encoded: Encoded) -> Encoded:
        """Items that nobody liked yet: `id` from their neighbours in content that somebody did, and `b_i` as the
        tenth of the others that fewest liked have it. A neighbour's would be too much: it was chosen by someone."""
        table = encoded.item["id"] * self.liked.unsqueeze(1)
        near = sum((graph.sum(table) for graph in self.item_graphs.values()), torch.zeros_like(table))
        item = torch.where(self.liked.unsqueeze(1), table, F.normalize(near, dim=1))
        uses = self.graph.degree[self.n_users :][self.liked]
        least = uses.argsort(stable=True)[: -(-len(uses) // 10)]
        bias = torch.where(self.liked, encoded.bias, encoded.bias[self.liked][least].mean())
        return replace(encoded, item=encoded.item | {"id": item}, bias=bias)

    @torch.no_grad()
    def scores(self, users: Tensor, quantized: bool = False, channels: tuple[str, ...] | None = None) -> Tensor:
        """Scores of every item, float (B, I).

        Args:
            users: int64 (B,).
            quantized: rank by the codes of the modalities' users instead of their vectors.
            channels: those that count, without the items' own part; None: everything.
        """
        encoded = self.encoded()
        own = {c: table[users] for c, table in encoded.user.items()}
        if quantized:
            own |= {m: residual.quantize(own[m], self.quantizers[m].codebooks) for m in self.modalities}
        if channels is not None:
            own = {c: table if c in channels else torch.zeros_like(table) for c, table in own.items()}
        return self.fuse(own) @ self.fuse(encoded.item).T + (encoded.bias if channels is None else 0)

    def full_sort_predict(self, interaction) -> Tensor:
        """RecBole's contract: flat scores (B I,) of the users' every item."""
        return self.scores(interaction[self.USER_ID]).flatten()

    @torch.no_grad()
    def predict(self, interaction) -> Tensor:
        """RecBole's contract: scores (B,) of pairs."""
        encoded = self.encoded()
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        user = self.fuse({c: table[users] for c, table in encoded.user.items()})
        item = self.fuse({c: table[items] for c, table in encoded.item.items()})
        return (user * item).sum(1) + encoded.bias[items]

    @torch.no_grad()
    def space(self) -> PreferenceSpace:
        """The snapshot, on the CPU, that everything after stage 1 works on."""
        self.eval()
        encoded = self.encoded()
        books = {m: self.quantizers[m].codebooks for m in self.modalities}
        codes = {m: residual.encode(encoded.user[m], books[m]).cpu() for m in self.modalities}

        def cpu(tables: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: table.detach().cpu().clone() for name, table in tables.items()}

        return PreferenceSpace(
            channels=self.channels,
            weights=self.weights.detach().cpu(),
            item_bias=encoded.bias.detach().cpu(),
            history=self.history.to(torch.device("cpu")),
            user_preference=cpu(encoded.user),
            item_preference=cpu(encoded.item),
            start=cpu(encoded.start),
            travelled=cpu(encoded.travelled),
            codebooks=cpu(books),
            user_codes=codes,
            projection={m: cpu(self.projections[m].tensors()) for m in self.modalities},
            recency=self.recency,
        )
