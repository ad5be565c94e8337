"""A frozen causal language model with rows for preference tokens, and the log-probabilities that it gives.

All prompts share their beginning (template and instruction): its keys and values are computed once. A prompt's
own part is computed once for all completions of it. So a step costs what is new, not what is repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from recbole_dppmg.assets import resolve
from recbole_dppmg.errors import AssetError, ConfigError
from recbole_dppmg.generators.prompts import Prompt, PromptBuilder, clean
from recbole_dppmg.generators.tokens import initial_rows, vocabulary

_SPACES = ("Ġ", "▁", " ", "Ċ", "\n")  # how tokenizers spell a token that begins a word or a line
_START_WORDS = 3
_LONGEST = 1024  # tokens, more than a prompt's own part with its completion


@dataclass
class Completions:
    """Token ids int64 (N, T), right-padded, and bool (N, T): which were written, the end token included."""

    ids: Tensor
    mask: Tensor


@dataclass
class Context:
    """What B prompts leave behind: keys and values, which positions count (B, P + M), next logits (B, V)."""

    cache: Any
    mask: Tensor
    logits: Tensor


class _Output(nn.Module):
    """The model's output layer, applied to the positions that count: one plain matrix product, where the layer on a
    padded batch would copy its weight for each row in the backward pass."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self._mask: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @contextmanager
    def only(self, mask: Tensor) -> Iterator[None]:
        """Within, states (B, T, D) give logits of the True positions of `mask` (B, T) alone: (M, V)."""
        self._mask = mask
        try:
            yield
        finally:
            self._mask = None

    def forward(self, states: Tensor) -> Tensor:
        if self._mask is not None:
            return self.layer(states[self._mask])
        return self.layer(states.flatten(0, 1)).unflatten(0, states.shape[:2])


class TokenLM:
    """The model by directory or hub id, with `sum(L * K)` token rows; only these rows train (and a LoRA if asked).

    The rows enter through peft's trainable indices, given as a list, which leaves tied embeddings tied. The output
    side keeps its own weights: preference tokens are read and never written.

    Raises:
        AssetError: there is no such model, or it is no causal language model.
        ConfigError: 4-bit loading is asked for and bitsandbytes is not installed.
    """

    def __init__(
        self,
        name: str,
        codebooks: Mapping[str, Tensor],
        seed: int,
        dtype: str = "bfloat16",
        lora_rank: int = 0,
        four_bit: bool = False,
    ):
        from peft import LoraConfig, TrainableTokensConfig, get_peft_model

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, self.tokenizer = _load(name, getattr(torch, dtype), four_bit, self.device)
        known = model.get_input_embeddings().weight[: len(self.tokenizer)]
        self.names = vocabulary(codebooks)
        rows = initial_rows(codebooks, known, seed)
        self.tokenizer.add_tokens(self.names, special_tokens=True)
        indices = self.tokenizer.convert_tokens_to_ids(self.names)
        if len(self.tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        output = model.get_output_embeddings()
        with torch.no_grad():
            model.get_input_embeddings().weight[indices] = rows.to(known.dtype)
        model.requires_grad_(False)
        if lora_rank:
            config = LoraConfig(
                r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", trainable_token_indices=indices
            )
        else:
            config = TrainableTokensConfig(token_indices=indices)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = get_peft_model(model, config).eval()
        # peft wraps a tied output layer too; unwrapped, it is the frozen layer that it was
        self._output = _Output(output)
        self.model.get_base_model().set_output_embeddings(self._output)
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        self.prompts = PromptBuilder(self.tokenizer)
        # a LoRA changes the beginning too; a short attention window counts the padding that would follow it
        begun = len(self.prompts.shared)
        self.shares = begun > 0 and not lora_rank and (window is None or window >= begun + _LONGEST)
        embedding = self.model.get_base_model().get_input_embeddings()
        self.embedding = getattr(embedding, "token_adapter", embedding)  # beside a LoRA it is wrapped twice
        with torch.no_grad():
            self.rows.copy_(rows)  # in float32, whatever the model's format
        sizes = [table.shape[1] for table in codebooks.values() for _ in range(table.shape[0])]
        self._level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(self.device)
        self.rows.register_hook(self._shared_within_levels)

    @property
    def rows(self) -> nn.Parameter:
        """The preference tokens' embeddings, float32 (N, D), as `vocabulary` orders them."""
        return self.embedding.trainable_tokens_delta["default"]

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _shared_within_levels(self, gradient: Tensor) -> Tensor:
        """The gradient (N, D) as if a row were its own part plus a part that all K rows of its level share, scaled by
        K^-1/4: what every reader's tokens must do alike is then learned from every text, not code by code."""
        size = self._level.bincount()[self._level].unsqueeze(1)
        total = torch.zeros_like(gradient).index_add(0, self._level, gradient)[self._level]
        return gradient + total / size.sqrt()

    @torch.no_grad()
    def start_from_words(self, glossary: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Set each row to the mean embedding of its token's first words, where it has any."""
        table = self.embedding.base_layer.weight
        words = [list(glossary.get(name, {}).get("words", ()))[:_START_WORDS] for name in self.names]
        ids = iter(self.prompts.untrusted([clean(word, 40) for row in words for word in row]))
        for n, row in enumerate(words):
            vectors = [table[found].float().mean(0) for _ in row if (found := next(ids))]
            if vectors:
                self.rows[n] = torch.stack(vectors).mean(0)

    @cached_property
    def ends(self) -> list[int]:
        """Token ids that end an answer."""
        named = self.model.get_base_model().generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        return sorted({i for i in (*named, self.tokenizer.eos_token_id) if i is not None})

    @cached_property
    def silent(self) -> Tensor:
        """Ids that are never written: special, added and preference tokens, and rows without a token."""
        width = self.model.get_base_model().get_output_embeddings().weight.shape[0]
        added = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        silent = (added | set(range(len(self.tokenizer), width))) - set(self.ends)
        return torch.tensor(sorted(silent), device=self.device)

    @cached_property
    def sentence(self) -> tuple[Tensor, Tensor]:
        """Which tokens end a sentence, and which begin a word: bool (V,) each."""
        spelled = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        stops = [str(t).endswith((".", "!", "?")) for t in spelled]
        begins = [str(t).startswith(_SPACES) for t in spelled]
        return torch.tensor(stops, device=self.device), torch.tensor(begins, device=self.device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The model as it came, without what was trained."""
        with self.model.disable_adapter(), torch.no_grad():
            yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Rows written into the embedding while generating, so that a step does not copy the whole table."""
        if self.shares:
            _ = self._shared  # read without the rows, so before they are written in
        self.embedding.merge()
        try:
            yield
        finally:
            self.embedding.unmerge()

    @cached_property
    def _shared(self) -> Any:
        """Keys and values of the beginning of all prompts, batch 1; no preference token stands there."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.get_base_model().config)
        with self.frozen():
            ids = torch.tensor([self.prompts.shared], device=self.device)
            self.model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
        return cache

    def read(self, prompts: Sequence[Prompt]) -> Context:
        """Pass prompts through the model; gradient flows to the rows."""
        from transformers import DynamicCache

        if not self.shares:
            own, cache = [p.ids for p in prompts], DynamicCache(config=self.model.get_base_model().config)
        else:
            own, cache = [p.own for p in prompts], copy.deepcopy(self._shared)
            cache.batch_repeat_interleave(len(prompts))
        ids, mask = _padded(own, left=True, device=self.device)
        before = len(prompts[0].ids) - len(own[0])
        mask = torch.cat([mask.new_ones(len(ids), before), mask], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, before:]
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return Context(cache, mask, self.spoken(out.logits[:, -1]))

    def spoken(self, logits: Tensor) -> Tensor:
        """Logits (..., V) in float32, minus infinity for what is never written."""
        return logits.float().index_fill(-1, self.silent, -torch.inf)

    def _embedded(self, ids: Tensor) -> Tensor:
        # completions hold no preference token: the plain table is enough
        return self.embedding.base_layer(ids)

    def log_probs(self, prompts: Sequence[Prompt], completions: Completions, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of completions, float32 (N, T), 0 where the mask is; gradient flows to the rows.

        Args:
            prompts: B of them; N is a multiple of B, completions of a prompt stand together.
        """
        ids, mask = completions.ids, completions.mask
        context = self.read(prompts)
        group = len(ids) // len(prompts)
        logits, seen = context.logits, context.mask
        if group > 1:
            context.cache.batch_repeat_interleave(group)
            logits, seen = logits.repeat_interleave(group, 0), seen.repeat_interleave(group, 0)
        before = mask[:, :-1]
        scores = [logits[mask[:, 0]]]
        places = [mask[:, :1].nonzero()]
        if before.shape[1]:
            positions = seen.sum(1, keepdim=True) + torch.arange(before.shape[1], device=self.device)
            with self._output.only(mask[:, 1:]):
                out = self.model(
                    inputs_embeds=self._embedded(ids[:, :-1]),
                    attention_mask=torch.cat([seen, before.long()], 1),
                    position_ids=positions,
                    cache=context.cache,
                    use_cache=True,
                )
            scores.append(self.spoken(out.logits))
            places.append(mask[:, 1:].nonzero() + torch.tensor([0, 1], device=self.device))
        logits, (row, column) = torch.cat(scores) / temperature, torch.cat(places).T
        values = logits.gather(1, ids[row, column].unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
        return torch.zeros(ids.shape, device=self.device).index_put((row, column), values)

    def completions(self, texts: Sequence[str]) -> Completions:
        """Given texts as completions, each with the end token."""
        end = self.tokenizer.eos_token_id
        ids, mask = _padded([[*row, end] for row in self.prompts.untrusted(texts)], left=False, device=self.device)
        return Completions(ids, mask.bool())

    def texts(self, completions: Completions) -> list[str]:
        """What was written, as it follows the prompt: with a leading space where a new word begins."""
        rows = [ids[m].tolist() for ids, m in zip(completions.ids, completions.mask, strict=True)]
        decoded = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        begins = self.sentence[1].tolist()
        return [
            f" {text}" if row and begins[row[0]] and not text.startswith(" ") else text
            for row, text in zip(rows, decoded, strict=True)
        ]


def _padded(rows: Sequence[Sequence[int]], left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (B, M) each."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    side = "left" if left else "right"
    ids = pad(tensors, batch_first=True, padding_side=side)
    mask = pad([torch.ones_like(t) for t in tensors], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


def _load(name: str, dtype: torch.dtype, four_bit: bool, device: torch.device) -> tuple[Any, Any]:
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, extra = resolve(name), {}
    if four_bit:
        if find_spec("bitsandbytes") is None:
            raise ConfigError("text_4bit: needs the package bitsandbytes; install it, or leave the key out")
        from transformers import BitsAndBytesConfig

        extra["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    if device.type == "cpu":
        extra["attn_implementation"] = "eager"  # measured: the fused kernel's backward pass is slower there
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise AssetError(f"text_generator: {folder} is no causal language model of transformers ({reason})") from error
    return (model if four_bit else model.to(device)), tokenizer
