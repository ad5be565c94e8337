"""Speed of the text generator against plain `model.generate` on the same prompts.

    python -m benchmarks.text_speed --model=SmolLM2-135M-Instruct --batches 1 8 24

Both write the same number of tokens for the same prompts, with the end token and the limit on sentences switched off.
`plain` is `model.generate` of transformers with the rows in its embedding; `head` shares the beginning of the prompts;
`int8` is the head with its linear layers quantized by torch's dynamic quantization. `teach` is a teaching step and
`reward` what a reward step costs in text: a group sampled, and scored under four models. Times are of the process's
CPU (all threads together), so that a busy machine does not blur them; on a GPU they are of the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from recbole_dppmg.generators.causal_lm import CausalLMHead
from recbole_dppmg.generators.decoding import complete
from recbole_dppmg.generators.language_model import TokenLM
from recbole_dppmg.generators.targets import teaching_target
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import Item, TextRequest

GPU = torch.cuda.is_available()
KINDS = ("Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi", "Thriller", "War")
TITLES = ("Heat", "Sense and Sensibility", "The Usual Suspects", "Once Upon a Time in the West", "Babe", "Up")


def requests(number: int) -> list[TextRequest]:
    items = [
        Item(str(n), TITLES[n % len(TITLES)], "", KINDS[n % 6 : n % 6 + 1 + n % 3], 1980 + n) for n in range(number)
    ]
    return [TextRequest(item, {"text": (n % 16,) * 4, "image": (n % 13,) * 4}, n) for n, item in enumerate(items)]


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Of the fastest call after one to warm up."""
    clock = time.perf_counter if GPU else time.process_time
    run()
    times = []
    for _ in range(repeats):
        began = clock()
        run()
        times.append(clock() - began)
    return min(times)


def write(lm: TokenLM, batch: list[TextRequest], tokens: int) -> None:
    """Exactly so many tokens for each request."""
    prompts = lm.prompts.build([r.item for r in batch], [r.tokens for r in batch])
    ends, lm.ends = lm.ends, [-1]
    complete(lm, prompts, torch.rand(len(batch), tokens), 0.3, top_k=50, sentences=10**6, whole=False)
    lm.ends = ends


def plain(lm: TokenLM, batch: list[TextRequest], tokens: int) -> None:
    prompts = lm.prompts.build([r.item for r in batch], [r.tokens for r in batch])
    rows = [{"input_ids": list(p.ids), "attention_mask": [1] * len(p.ids)} for p in prompts]
    padded = lm.tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(lm.device)
    with lm.merged(), torch.no_grad():
        lm.model.get_base_model().generate(
            **padded, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=0.3, top_k=50,
            pad_token_id=lm.tokenizer.pad_token_id,
        )  # fmt: skip


def reward(head: CausalLMHead, batch: list[TextRequest], group: int) -> None:
    samples = head.sample_group(batch, group, 0)
    head.fluency(samples)
    head.reference_log_probs(samples)
    head.log_probs(samples).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="embedded name, directory or hub id")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 24])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--int8", action="store_true", help="time int8 dynamic quantization too (float32, CPU)")
    arguments = parser.parse_args()

    codebooks = {m: torch.randn(4, 16, 64) for m in ("text", "image")}
    began = time.process_time()
    head = CausalLMHead(arguments.model, codebooks, Settings(text_dtype=arguments.dtype), 0)
    print(f"# {arguments.model}, {arguments.dtype}, loaded in {time.process_time() - began:.1f} s")
    print("| what | batch | tokens/s | s |\n|---|---|---|---|")
    ways = {"plain": (head.lm, plain), "head": (head.lm, write)}
    if arguments.int8:
        quantized = TokenLM(arguments.model, codebooks, 0, "float32")
        base = quantized.model.get_base_model()
        base.model = torch.ao.quantization.quantize_dynamic(base.model, {torch.nn.Linear}, torch.qint8)
        quantized.embedding = base.get_input_embeddings()
        ways["int8"] = (quantized, write)
    for number in arguments.batches:
        batch = requests(number)
        for name, (lm, run) in ways.items():
            took = seconds(lambda run=run, lm=lm, b=batch: run(lm, b, arguments.tokens), arguments.repeats)
            print(f"| {name} | {number} | {number * arguments.tokens / took:.1f} | {took:.2f} |", flush=True)
    batch = requests(8)
    targets = [teaching_target(r.item, {"text": [["drama", "war"]]}) for r in batch]
    took = seconds(lambda: head.teaching_loss(batch, targets).backward(), arguments.repeats)
    print(f"| teach | 8 | | {took:.2f} |")
    took = seconds(lambda: reward(head, batch[:2], 8), arguments.repeats)
    print(f"| reward | 2 x 8 | | {took:.2f} |")


if __name__ == "__main__":
    main()
