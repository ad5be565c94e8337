"""The text head: a frozen causal language model that also reads preference tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from recbole_dppmg.artifacts import fingerprint, load_tensors, save_tensors, write_json
from recbole_dppmg.errors import BundleError, ConfigError, DataError
from recbole_dppmg.generators.base import Catalogue
from recbole_dppmg.generators.decoding import complete
from recbole_dppmg.generators.language_model import Completions, TokenLM
from recbole_dppmg.generators.prompts import Prompt, clean, name_of
from recbole_dppmg.settings import TextSettings
from recbole_dppmg.types import TextRequest, TextResult

_BATCH = 16  # texts written side by side
_TOP_K = 50
_SENTENCES = 2
_SENTENCE_END = re.compile("(?<=[.!?])[\"'\u201d\u2019)]*\\s+")
_WEIGHTS, _ABOUT = "adapter_model.safetensors", "adapter_config.json"


@dataclass
class Samples:
    """G texts for each of B requests, request by request, with what is needed to score them again."""

    texts: list[str]
    prompts: list[Prompt]
    frozen_prompts: list[Prompt]
    completions: Completions

    @property
    def mask(self) -> Tensor:
        """bool (B * G, T): which tokens were written."""
        return self.completions.mask


class CausalLMHead:
    """Explains items to users with any causal language model; trains nothing but the preference tokens' rows.

    An explanation begins with the item's name, which the head writes itself; the rest is the model's.

    Args:
        model: embedded name, directory or hub id of a causal language model.
        codebooks: float (L, K, d) per modality.
        settings: the keys of the run; those of `TextSettings` are read.
        seed: of the rows' start, and of a LoRA's.

    Raises:
        AssetError: the model cannot be used.
        ConfigError: 4-bit loading without bitsandbytes.
    """

    name = "causal_lm"

    def __init__(self, model: str, codebooks: Mapping[str, Tensor], settings: TextSettings, seed: int):
        self.settings, self.model = settings, model
        self.lm = TokenLM(model, codebooks, seed, settings.text_dtype, settings.text_lora_rank, settings.text_4bit)
        #: The trained parameters that `reference_log_probs` compares with; None: those of its next call.
        self.reference: list[Tensor] | None = None

    def attach(self, catalogue: Catalogue) -> None:
        """Start the rows from the words that their tokens stand for; without a catalogue they start from the codes."""
        self.lm.start_from_words(catalogue.glossary)

    def parameters(self) -> list[nn.Parameter]:
        """The token rows, float32 (N, D), and a LoRA's matrices if one is asked for."""
        return self.lm.parameters()

    def teaching_loss(self, requests: Sequence[TextRequest], targets: Sequence[str]) -> Tensor:
        """Mean negative log-probability of a token of the targets, in nats, given item and preference tokens.

        Args:
            requests: B items with the tokens of who liked them.
            targets: B texts; each begins with the item's name, as `prompts.name_of` gives it.

        Returns:
            float32 (), with gradient.

        Raises:
            ConfigError: the loss is not finite.
            DataError: a target does not begin with its item's name.
        """
        for request, target in zip(requests, targets, strict=True):
            if not target.startswith(name_of(request.item)):
                raise DataError(f"item '{request.item.id}': its teaching text does not begin with its name")
        rests = [t[len(name_of(r.item)) :].strip() for r, t in zip(requests, targets, strict=True)]
        completions = self.lm.completions(rests)
        values = self.lm.log_probs(self._prompts(requests), completions)
        loss = -values.sum() / completions.mask.sum()
        if not torch.isfinite(loss):
            raise ConfigError("text_learning_rate: the text generator's loss is not finite; take a smaller rate")
        self.reference = None
        return loss

    def generate(self, batch: Sequence[TextRequest]) -> list[TextResult]:
        """One explanation per request, in order. The draws of a request follow from its seed and item alone.

        A request that cannot be answered gets a result with `error`.
        """
        results: list[TextResult] = [TextResult("", "not written")] * len(batch)
        prompts = dict(self._buildable(batch, results))
        # long with long: little padding
        order = sorted(prompts, key=lambda n: len(prompts[n].own))
        for start in range(0, len(order), _BATCH):
            chunk = order[start : start + _BATCH]
            for n, result in zip(
                chunk, self._write([batch[n] for n in chunk], [prompts[n] for n in chunk]), strict=True
            ):
                results[n] = result
        return results

    def _buildable(self, batch: Sequence[TextRequest], results: list[TextResult]) -> Iterator[tuple[int, Prompt]]:
        for n, request in enumerate(batch):
            try:
                yield n, self._prompts([request])[0]
            except DataError as error:
                results[n] = TextResult("", str(error))

    def _write(self, requests: list[TextRequest], prompts: list[Prompt]) -> list[TextResult]:
        settings = self.settings
        chance = _draws(requests, 1, settings.text_max_new_tokens)
        written = complete(self.lm, prompts, chance, settings.text_temperature, _TOP_K, _SENTENCES)
        rests = self.lm.texts(written)
        texts = [explanation(name_of(r.item), rest) for r, rest in zip(requests, rests, strict=True)]
        return [TextResult(t) if t else TextResult("", "the language model wrote nothing") for t in texts]

    def sample_group(self, requests: Sequence[TextRequest], group: int, seed: int) -> Samples:
        """`group` texts for each request, drawn from the model at temperature 1, so that they can be learned from.

        Args:
            requests: B of them.
            seed: of the draws, together with each request's item.
        """
        prompts = self._prompts(requests)
        chance = _draws([TextRequest(r.item, None, seed) for r in requests], group, self.settings.text_max_new_tokens)
        written = complete(self.lm, prompts, chance, 1.0, sentences=_SENTENCES, whole=False)
        names = [name_of(r.item) for r in requests for _ in range(group)]
        texts = [explanation(name, rest) or name for name, rest in zip(names, self.lm.texts(written), strict=True)]
        bare = self.lm.prompts.build([r.item for r in requests], [None] * len(requests))
        return Samples(texts, prompts, bare, written)

    def log_probs(self, samples: Samples) -> Tensor:
        """Of each token written, float32 (B * G, T), with gradient; 0 where `samples.mask` is False."""
        return self.lm.log_probs(samples.prompts, samples.completions)

    @torch.no_grad()
    def reference_log_probs(self, samples: Samples) -> Tensor:
        """The same under the parameters as they were when this was first called after teaching or loading."""
        if self.reference is None:
            self.reference = [p.detach().clone() for p in self.parameters()]
        with self._parameters_as(self.reference):
            return self.log_probs(samples)

    @contextmanager
    def _parameters_as(self, values: Sequence[Tensor]) -> Iterator[None]:
        current = [p.detach().clone() for p in self.parameters()]
        _assign(self.parameters(), values)
        try:
            yield
        finally:
            _assign(self.parameters(), current)

    @torch.no_grad()
    def fluency(self, samples: Samples) -> Tensor:
        """Quality of each text, float32 (B * G,): mean log-probability of a token, in nats, under the model as it
        came, told the item and nothing of the user; less the share of repeated word pairs, and less 1 each for a
        text that is empty and for one that does not end within the limit."""
        with self.lm.frozen():
            values = self.lm.log_probs(samples.frozen_prompts, samples.completions)
        length = samples.mask.sum(1)
        ended = torch.isin(samples.completions.ids, torch.tensor(self.lm.ends, device=values.device)) & samples.mask
        over = ~ended.any(1) & (length >= self.settings.text_max_new_tokens)
        quality = values.sum(1) / length.clamp_min(1) - (length <= 1).float() - over.float()
        return quality.cpu() - torch.tensor([repetition(text) for text in samples.texts])

    def save(self, directory: str | Path) -> None:
        """Write the rows (and LoRA) in peft's format, with the tokens' names."""
        from peft import get_peft_model_state_dict

        directory = Path(directory)
        state = get_peft_model_state_dict(self.lm.model, save_embedding_layers=False)
        save_tensors(directory / _WEIGHTS, state)
        config = self.lm.model.peft_config["default"].to_dict()
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        config |= {"base_model_name_or_path": self.model, "inference_mode": True}
        write_json(directory / _ABOUT, config)
        write_json(directory / "tokens.json", self._signature())

    def load(self, directory: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            BundleError: a file is missing or damaged, or was written for another model or other tokens.
        """
        from peft import set_peft_model_state_dict

        directory = Path(directory)
        path = directory / "tokens.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again") from error
        for key, value in self._signature().items():
            if not isinstance(found, dict) or found.get(key) != value:
                raise BundleError(f"{path}: written for another text generator ('{key}' differs); train it again")
        state = load_tensors(directory / _WEIGHTS)
        expected = _shapes(self.lm.model)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != expected:
            raise BundleError(f"{directory / _WEIGHTS}: its tensors do not fit the text generator; train it again")
        set_peft_model_state_dict(self.lm.model, state)
        self.reference = None

    def _signature(self) -> dict:
        config = self.lm.model.get_base_model().config
        return {
            "model_type": config.model_type,
            "layers": config.num_hidden_layers,
            "width": self.lm.rows.shape[1],
            "vocabulary": fingerprint(sorted(self.lm.tokenizer.get_vocab().items())),
            "tokens": self.lm.names,
        }

    def _prompts(self, requests: Sequence[TextRequest]) -> list[Prompt]:
        return self.lm.prompts.build([r.item for r in requests], [r.tokens for r in requests])


def explanation(name: str, rest: str) -> str:
    """What a reader sees: name and completion on one line, of whole sentences, at most two; '' if nothing is told.

    >>> explanation("Up", " is a comedy. It flies. And so")
    'Up is a comedy. It flies.'
    """
    rest = f"{' ' if rest[:1].isspace() else ''}{clean(rest, 600)}"
    if not rest.strip(" .,;:!?-"):
        return ""
    sentences = _SENTENCE_END.split(rest)
    if len(sentences) > 1 and not sentences[-1].endswith((".", "!", "?")):
        sentences.pop()  # cut off by the limit
    text = name + " ".join(sentences[:_SENTENCES])
    return text if text.endswith((".", "!", "?")) else f"{text.rstrip(' ,;:-')}."


def repetition(text: str) -> float:
    """The share of word pairs that occurred before in the text.

    >>> repetition("so so so")
    0.5
    """
    words = text.lower().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _shapes(model) -> dict[str, tuple[int, ...]]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _draws(requests: Sequence[TextRequest], group: int, steps: int) -> Tensor:
    """Uniform numbers float64 (B * G, T), by each request's seed and item, whoever else is in the batch."""
    rows = []
    for request in requests:
        seed = int(fingerprint(request.seed, request.item.id)[:15], 16)
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(group, steps, generator=generator, dtype=torch.float64))
    return torch.cat(rows)


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
