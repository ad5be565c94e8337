"""The text head on tiny real language models of four layouts."""

import json
import shutil

import pytest
import tiny_language_models as tiny
import torch

from recbole_dppmg.artifacts import load_tensors, save_tensors
from recbole_dppmg.errors import AssetError, BundleError, ConfigError, DataError
from recbole_dppmg.generators.base import Catalogue
from recbole_dppmg.generators.causal_lm import CausalLMHead, explanation
from recbole_dppmg.generators.decoding import complete
from recbole_dppmg.generators.prompts import name_of
from recbole_dppmg.generators.targets import teaching_target
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import Item, TextRequest

CODEBOOKS = {
    m: torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(n)) for n, m in enumerate(("text", "image"))
}
ITEMS = [
    Item("1", "Heat", "Heat (1995). Action, Crime. Two men in a city.", ("Action", "Crime"), 1995),
    Item("2", "Emma", "Emma (1996). Comedy, Romance.", ("Comedy", "Romance"), 1996),
    Item("3", "A Nightmare on a Very Long Street of Many Houses", "", ("Horror",), 1984),
]
TASTES = [{"text": (0, 1), "image": (2, 3)}, {"text": (3, 2), "image": (1, 0)}, {"text": (1, 1), "image": (0, 0)}]
REQUESTS = [TextRequest(item, tokens, 5) for item, tokens in zip(ITEMS, TASTES, strict=True)]
TARGETS = [teaching_target(item, {"text": [["action", "romance", "horror"]]}) for item in ITEMS]
CASES = [(layout, tied) for layout in tiny.LAYOUTS for tied in (True, False)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("language-models")
    return {
        (layout, tied): tiny.save_language_model(root / f"{layout}-{tied}", layout, tied, 40 if layout == "qwen" else 0)
        for layout, tied in CASES
    }


@pytest.fixture
def make(folders):
    def head(layout="llama", tied=True, seed=0, **keys):
        keys = {"text_dtype": "float32", "text_max_new_tokens": 12} | keys
        return CausalLMHead(str(folders[layout, tied]), CODEBOOKS, Settings(**keys), seed)

    return head


def teach(head, steps=30, rate=0.05):
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = head.teaching_loss(REQUESTS, TARGETS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(head):
    trained = {id(p) for p in head.parameters()}
    state = {n: p for n, p in head.lm.model.named_parameters() if id(p) not in trained}
    state |= dict(head.lm.model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@pytest.mark.parametrize(("layout", "tied"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_rows_train(make, layout, tied, dtype):
    head = make(layout, tied, text_dtype=dtype)
    assert [p.shape for p in head.parameters()] == [(16, 32)]
    before, rows = weights(head), head.lm.rows.detach().clone()
    losses = teach(head)
    head.generate(REQUESTS)
    head.fluency(head.sample_group(REQUESTS, 2, 0))
    after = weights(head)
    assert losses[-1] < losses[0]
    assert not torch.equal(head.lm.rows, rows)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model = head.lm.model.get_base_model()
    same = model.get_input_embeddings().base_layer.weight is model.get_output_embeddings().weight
    assert same == tied


@pytest.mark.parametrize(("layout", "tied"), CASES)
def test_log_probs_are_the_models_own(make, layout, tied):
    """Cached beginning, padding and shared prompts change nothing against one whole pass over each text alone."""
    head = make(layout, tied)
    samples = head.sample_group(REQUESTS, 3, 1)
    found = head.log_probs(samples)
    for n, (ids, mask) in enumerate(zip(samples.completions.ids, samples.mask, strict=True)):
        prompt = torch.tensor(samples.prompts[n // 3].ids)
        written = ids[mask]
        with torch.no_grad():
            logits = head.lm.model(input_ids=torch.cat([prompt, written]).unsqueeze(0)).logits[0]
        logits[:, head.lm.silent] = -torch.inf
        own = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, written.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(found[n][mask], own, atol=2e-4, rtol=1e-3)
    assert torch.equal(found == 0, ~samples.mask)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_greedy_text_is_that_of_plain_generate(make, layout):
    head = make(layout, text_temperature=0)
    model = head.lm.model.get_base_model()
    written = complete(head.lm, head._prompts(REQUESTS), torch.zeros(3, 12), 0.0, sentences=99, whole=False)
    for n, prompt in enumerate(head._prompts(REQUESTS)):
        plain = model.generate(
            torch.tensor([prompt.ids]),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=head.lm.silent.tolist(),
            eos_token_id=head.lm.ends,
            pad_token_id=0,
            attention_mask=torch.ones(1, len(prompt.ids)),
        )[0, len(prompt.ids) :]
        assert written.ids[n][written.mask[n]].tolist() == plain.tolist()


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_explanations(make, layout):
    head = make(layout)
    teach(head, 5)
    first = head.generate(REQUESTS)
    assert first == head.generate(REQUESTS)
    assert [r.error for r in first] == [None] * 3
    for request, result in zip(REQUESTS, first, strict=True):
        assert result.text.startswith(name_of(request.item))
        assert result.text[-1] in ".!?"
        assert "<" not in result.text
    one = [head.generate([request])[0] for request in REQUESTS]
    assert [r.text for r in one] == [r.text for r in first]  # whoever else is in the batch


def test_rows_start_from_their_words_where_they_have_any(make):
    head = make()
    start = head.lm.rows.detach().clone()
    head.attach(Catalogue(None, ITEMS, {"<text_0_1>": {"words": ["drama", "horror"]}, "<image_1_3>": {"words": []}}))
    table = head.lm.embedding.base_layer.weight
    ids = head.lm.tokenizer([" drama", " horror"])["input_ids"]
    expected = torch.stack([table[i].mean(0) for i in ids]).mean(0)
    torch.testing.assert_close(head.lm.rows[1], expected)
    others = [n for n in range(16) if n != 1]
    assert torch.equal(head.lm.rows[others], start[others])


def test_rows_of_a_level_share_a_part_of_their_gradient(make):
    head = make()
    head.teaching_loss(REQUESTS[:1], TARGETS[:1]).backward()
    gradient = head.lm.rows.grad.view(2, 2, 4, 32)  # modality, level, code
    used = {(m, level, code) for m, codes in enumerate(TASTES[0].values()) for level, code in enumerate(codes)}
    for m in range(2):
        for level in range(2):
            (code,) = (c for k, lvl, c in used if (k, lvl) == (m, level))
            silent = [c for c in range(4) if c != code]
            shared = gradient[m, level, silent[0]]
            assert shared.abs().max() > 0
            torch.testing.assert_close(gradient[m, level, silent], shared.expand(3, 32))
            torch.testing.assert_close(gradient[m, level, code], 3 * shared)  # its own, and a half of it: sqrt(4)


def test_same_seed_same_rows_and_texts(make):
    texts = []
    for _ in range(2):
        head = make()
        teach(head, 4)
        texts.append((head.lm.rows.detach().clone(), head.generate(REQUESTS), head.sample_group(REQUESTS, 2, 9).texts))
    assert torch.equal(texts[0][0], texts[1][0])
    assert texts[0][1:] == texts[1][1:]
    assert not torch.equal(make(seed=1).lm.rows, make(seed=2).lm.rows)


def test_tokens_change_what_is_said(make):
    head = make()
    swapped = [TextRequest(r.item, TASTES[1], r.seed) for r in REQUESTS[:1]]
    samples = head.sample_group(REQUESTS[:1], 2, 0)
    other = head.sample_group(swapped, 2, 0)
    assert samples.texts != other.texts


def test_save_and_load(make, tmp_path):
    head = make()
    teach(head, 3)
    head.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "tokens.json"}
    fresh = make(seed=5)
    fresh.load(tmp_path)
    assert torch.equal(fresh.lm.rows, head.lm.rows)
    assert fresh.generate(REQUESTS) == head.generate(REQUESTS)
    sizes = [tensor.shape for tensor in load_tensors(tmp_path / "adapter_model.safetensors").values()]
    assert sizes == [(16, 32)]


def test_peft_reads_what_is_saved(make, tmp_path):
    """The rows serve anywhere: plain peft on the plain model gives the same next token."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    head = make()
    teach(head, 3)
    head.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    )
    base.resize_token_embeddings(len(head.lm.tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(base, tmp_path)
    prompt = torch.tensor([head._prompts(REQUESTS)[0].ids])
    torch.testing.assert_close(
        model(input_ids=prompt).logits[0, -1, :300], head.lm.model(input_ids=prompt).logits[0, -1, :300]
    )


@pytest.mark.parametrize("damage", ["missing", "cut", "other model", "other tokens", "shape", "not json"])
def test_damaged_parameters_are_refused(make, tmp_path, damage):
    make().save(tmp_path)
    weights_file = tmp_path / "adapter_model.safetensors"
    head = make()
    if damage == "missing":
        weights_file.unlink()
    elif damage == "cut":
        weights_file.write_bytes(weights_file.read_bytes()[:50])
    elif damage == "other model":
        head = make("gemma")
    elif damage == "other tokens":
        about = json.loads((tmp_path / "tokens.json").read_text())
        (tmp_path / "tokens.json").write_text(json.dumps(about | {"tokens": about["tokens"][1:]}))
    elif damage == "shape":
        save_tensors(weights_file, {n: t[:-1] for n, t in load_tensors(weights_file).items()})
    else:
        (tmp_path / "tokens.json").write_text("{")
    rows = head.lm.rows.detach().clone()
    with pytest.raises(BundleError, match=str(tmp_path)):
        head.load(tmp_path)
    assert torch.equal(head.lm.rows, rows)


def test_lora_trains_beside_the_rows_when_asked_for(make, tmp_path):
    head = make(text_lora_rank=2)
    assert len(head.parameters()) > 1
    frozen = weights(head)
    losses = teach(head, 20, rate=0.01)
    assert losses[-1] < losses[0]
    assert all(torch.equal(frozen[name], tensor) for name, tensor in weights(head).items())
    samples = head.sample_group(REQUESTS, 2, 0)
    head.save(tmp_path)
    fresh = make(text_lora_rank=2, seed=3)
    fresh.load(tmp_path)
    torch.testing.assert_close(fresh.log_probs(samples), head.log_probs(samples))
    with pytest.raises(BundleError):
        make().load(tmp_path)


def test_reference_is_the_model_at_its_first_call(make):
    head = make()
    samples = head.sample_group(REQUESTS, 2, 0)
    first = head.reference_log_probs(samples)
    torch.testing.assert_close(first, head.log_probs(samples).detach())
    with torch.no_grad():
        head.lm.rows.add_(1.0)
    moved = head.lm.rows.detach().clone()
    torch.testing.assert_close(head.reference_log_probs(samples), first)
    assert torch.equal(head.lm.rows, moved)
    assert not torch.allclose(head.log_probs(samples), first)


def test_fluency_prefers_likely_texts_and_knows_nothing_of_the_user(make):
    head = make()
    samples = head.sample_group(REQUESTS, 4, 0)
    before = head.fluency(samples)
    assert before.shape == (12,) and before.dtype == torch.float32 and torch.isfinite(before).all()
    with torch.no_grad():
        head.lm.rows.add_(1.0)
    torch.testing.assert_close(head.fluency(samples), before)
    samples.texts[0] = "so so so so so so"
    assert head.fluency(samples)[0] < before[0]


def test_a_bad_request_fails_alone(make):
    bad = TextRequest(ITEMS[0], {"text": (0, 99)}, 5)
    results = make().generate([REQUESTS[0], bad, REQUESTS[1]])
    assert "<text_1_99>" in results[1].error and results[1].text == ""
    assert results[0].error is None and results[2].error is None
    assert make().generate([]) == []


def test_a_loss_that_is_not_finite_is_told(make):
    head = make()
    with torch.no_grad():
        head.lm.rows.fill_(torch.nan)
    with pytest.raises(ConfigError, match="text_learning_rate"):
        head.teaching_loss(REQUESTS, TARGETS)
    assert all(r.error for r in head.generate(REQUESTS))


def test_a_target_without_the_items_name_is_told(make):
    with pytest.raises(DataError, match="'1'"):
        make().teaching_loss(REQUESTS[:1], ["It is good."])


def test_no_model_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AssetError, match="causal language model"):
        CausalLMHead(str(tmp_path), CODEBOOKS, Settings(), 0)


def test_an_encoder_is_no_causal_language_model(folders, tmp_path):
    shutil.copytree(folders["llama", True], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(
        json.dumps(config | {"model_type": "vit", "architectures": ["ViTModel"]})
    )
    with pytest.raises(AssetError, match="causal language model"):
        CausalLMHead(str(tmp_path / "m"), CODEBOOKS, Settings(), 0)


def test_four_bit_needs_its_package(make):
    from importlib.util import find_spec

    if find_spec("bitsandbytes"):
        assert make(text_4bit=True).generate(REQUESTS)[0].text
    else:
        with pytest.raises(ConfigError, match="bitsandbytes"):
            make(text_4bit=True)


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (" is one. Is two. Is three.", "Heat is one. Is two."),
        (" is one. And then", "Heat is one."),
        (" is cut in the midd", "Heat is cut in the midd."),
        (": yes!", "Heat: yes!"),
        ("", ""),
        (" . ", ""),
        (" is <text_0_1> one.", "Heat is text_0_1 one."),
    ],
)
def test_whole_sentences(rest, told):
    assert explanation("Heat", rest) == told
