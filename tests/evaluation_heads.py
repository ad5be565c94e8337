"""Text heads for tests of the evaluation: one that speaks of its tokens, and policies that are degenerate."""

from pathlib import Path

import torch

from recbole_dppmg.generators.baselines import Untrained
from recbole_dppmg.types import TextResult, token_name


class Policy(Untrained):
    """`mode` is what it does: `speak` the first words of its tokens, `parrot` one sentence, or `stutter`."""

    name = "policy"
    mode = "speak"

    def __init__(self, model, codebooks, settings, seed):
        super().__init__(model, codebooks, settings, seed)
        self._row = torch.nn.Parameter(torch.zeros(1))
        self._glossary = {}

    def attach(self, catalogue):
        self._glossary = catalogue.glossary

    def parameters(self):
        return [self._row]

    def save(self, directory):
        (Path(directory) / "mode.txt").write_text(self.mode)

    def load(self, directory):
        self.mode = (Path(directory) / "mode.txt").read_text()

    def generate(self, batch):
        return [TextResult(self._say(request)) for request in batch]

    def _say(self, request):
        if self.mode == "parrot":
            return "This is the film that everybody loves."
        if self.mode == "stutter":
            return f"{request.item.title} " + "is so good " * 12
        if not request.tokens or not self._glossary:
            return f"{request.item.title}."
        words = [
            word
            for level, code in enumerate(request.tokens["text"])
            for word in self._glossary[token_name("text", level, code)]["words"][:2]
        ]
        return f"{request.item.title} is {' '.join(words)}."
