"""The diffusion head on tiny real pipelines."""

import numpy as np
import pytest
import tiny_pipelines
import torch

from recbole_dppmg.errors import BundleError
from recbole_dppmg.generators.diffusion import DiffusionHead, image_prompt
from recbole_dppmg.generators.loading import load_backbone
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import ImageRequest, Item

SAVE = {
    "compact": tiny_pipelines.save_compact,
    "sd15": tiny_pipelines.save_sd,
    "sd21": lambda folder: tiny_pipelines.save_sd(folder, "v_prediction"),
    "sdxl": tiny_pipelines.save_sdxl,
}
KEYS = {"sampling_steps": 4, "image_injection": "concat"}
CODEBOOKS = {
    m: torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(n)) for n, m in enumerate(("text", "image"))
}
FILMS = [
    Item("1", "Heat", "Heat (1995). Action, Crime.", ("Action", "Crime"), 1995),
    Item("2", "Emma", "Emma (1996). Drama, Romance.", ("Drama", "Romance"), 1996),
    Item("3", "Babe", "Babe (1995). Children, Comedy.", ("Children", "Comedy"), 1995),
]
TASTES = [{"text": (0, 0, 0, 0), "image": codes} for codes in ((1, 2, 3, 4), (9, 8, 7, 6), (15, 0, 11, 2))]
CARDS = [ImageRequest(item, tokens, 7) for item, tokens in zip(FILMS, TASTES, strict=True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save(root / name) for name, save in SAVE.items()}


@pytest.fixture(scope="module")
def make(folders):
    def head(pipeline="compact", seed=0, **keys):
        return DiffusionHead(str(folders[pipeline]), CODEBOOKS, Settings(**KEYS | keys), seed)

    return head


def pixels(results):
    assert [r.error for r in results] == [None] * len(results)
    return np.stack([np.asarray(r.image, dtype=np.int16) for r in results])


def liked_images(head):
    """An image per card, each of one colour."""
    colours = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.8, 0.2], [0.2, 0.1, 0.9]])
    return colours[:, :, None, None].expand(-1, -1, head.size, head.size)


def teach(head, steps, rate=3e-3):
    """Teach the same three images again and again."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = head.teaching_loss(CARDS, liked_images(head), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def untaught(head):
    """The mean teaching loss over the same 12 draws of times, noise and what is dropped."""
    generator = torch.Generator().manual_seed(99)
    return np.mean([head.teaching_loss(CARDS, liked_images(head), generator).item() for _ in range(12)])


@pytest.mark.parametrize("injection", ["concat", "decoupled"])
@pytest.mark.parametrize("pipeline", SAVE)
def test_every_layout_is_taught_and_draws(make, pipeline, injection):
    head = make(pipeline, image_injection=injection)
    before = untaught(head)
    teach(head, 40)
    assert untaught(head) < 0.99 * before
    assert pixels(head.generate(CARDS)).shape == (3, head.size, head.size, 3)


@pytest.mark.parametrize("keys", [{}, {"image_injection": "decoupled"}, {"image_lora_rank": 2}])
def test_only_what_is_declared_changes(make, keys):
    head = make(**keys)
    declared = {id(p) for p in head.parameters()}
    modules = {"unet": head.backbone.unet, "vae": head.backbone.vae, "encoder": head.backbone._encoder.model}
    before = {(m, n): p.detach().clone() for m, module in modules.items() for n, p in module.named_parameters()}
    own = [p.detach().clone() for p in head.parameters()]
    teach(head, 3)
    images, drift = head.differentiable_images(CARDS, seed=0)
    (images.mean() + drift).backward()
    for m, module in modules.items():
        for n, p in module.named_parameters():
            if id(p) not in declared:
                assert torch.equal(p, before[m, n]), f"{m}.{n}"
                assert p.grad is None and not p.requires_grad, f"{m}.{n}"
    changed = [not torch.equal(p, old) for p, old in zip(head.parameters(), own, strict=True)]
    assert all(changed)


def test_the_optimizer_is_given_the_tokens_parameters_alone(make):
    names = {n for n, _ in make()._trained.named_parameters()}
    assert names == {
        f"projector.{n}" for n in ("level", "null", *(f"mlp.{k}.{w}" for k in (0, 2) for w in ("weight", "bias")))
    }
    assert len(make().parameters()) == len(names)


def test_same_seed_same_image_and_other_tokens_another(make):
    head = make()
    first, again = (pixels(head.generate(CARDS)) for _ in range(2))
    assert np.array_equal(first, again)
    same_film = [ImageRequest(FILMS[0], tokens, 7) for tokens in (*TASTES, None)]
    drawn = pixels(head.generate(same_film))
    apart = [np.abs(drawn[a] - drawn[b]).mean() for a in range(4) for b in range(a)]
    assert min(apart) > 0.5
    other_seed = pixels(head.generate([ImageRequest(FILMS[0], TASTES[0], 8)]))
    assert np.abs(other_seed[0] - drawn[0]).mean() > 0.5


def test_preference_guidance_strengthens_the_preference(make):
    card = [ImageRequest(FILMS[0], tokens, 7) for tokens in (TASTES[0], None)]
    effect = []
    for scale in (0.0, 1.0, 4.0):
        drawn = pixels(make(guidance_preference=scale).generate(card))
        effect.append(np.abs(drawn[0] - drawn[1]).mean())
    assert effect[0] == 0
    assert 0 < effect[1] < effect[2]


@pytest.mark.parametrize("pipeline", ["compact", "sdxl"])
def test_an_image_does_not_depend_on_its_batch(make, pipeline):
    head = make(pipeline)
    together = pixels(head.generate([*CARDS, ImageRequest(FILMS[0], None, 1)]))
    alone = np.concatenate([pixels(head.generate([card])) for card in CARDS])
    # sums may be taken in another order in a batch of another size
    assert np.abs(together[:3] - alone).max() <= 1


def test_guidance_is_the_formula(make):
    head = make(guidance_text=4.0, guidance_preference=2.5)
    latents = torch.randn(2, *head.backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(500)
    prompts = head._prompts(CARDS[:2])
    tokens, null = head.projector(*head._encode_tokens(CARDS[:2])), head.projector.null.expand(2, -1, -1)
    rows = torch.arange(4)
    with torch.no_grad():
        found = head.denoiser._guidance(prompts, head.projector.null, tokens)(latents, t)
        e00 = head.denoiser.predict(latents, t, prompts.take(rows[:2]), null)
        ec0 = head.denoiser.predict(latents, t, prompts.take(rows[2:]), null)
        ecp = head.denoiser.predict(latents, t, prompts.take(rows[2:]), tokens)
    torch.testing.assert_close(found, e00 + 4.0 * (ec0 - e00) + 2.5 * (ecp - ec0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pipeline", ["sd15", "sdxl"])
def test_decoupled_at_scale_0_is_the_base_pipeline_bit_for_bit(make, folders, pipeline):
    head = make(pipeline, image_injection="decoupled")
    base = load_backbone(str(folders[pipeline]), torch.float32)
    attention = head._trained["attention"].values()
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    prompts = base.encode_prompts([image_prompt(card.item) for card in CARDS])
    t = torch.tensor([10, 500, 990])
    with torch.no_grad():
        tokens = head.projector(*head._encode_tokens(CARDS))
        expected = base.predict(latents, t, prompts.states, prompts.added)
        assert torch.equal(head.denoiser.predict(latents, t, prompts, tokens), expected)  # not taught yet
        for module in attention:
            module.to_v.weight.normal_()
        assert not torch.equal(head.denoiser.predict(latents, t, prompts, tokens), expected)
        for module in attention:
            module.scale = 0.0
        assert torch.equal(head.denoiser.predict(latents, t, prompts, tokens), expected)


def test_the_pipelines_own_sampler_gives_the_same_image_without_tokens(make, folders):
    """Dual guidance without preference is diffusers' classifier-free guidance, from prompt to pixels."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    head = make("sd15", image_injection="decoupled", preference_scale=0.0, sampling_steps=6)
    found = pixels(head.generate([ImageRequest(FILMS[0], None, 3)]))[0]
    pipeline = StableDiffusionPipeline.from_pretrained(folders["sd15"], safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    from recbole_dppmg.generators.diffusion import _noise_of

    noise = torch.randn((1, *head.backbone.latent_shape), generator=_noise_of(ImageRequest(FILMS[0], None, 3), 0))
    expected = pipeline(
        image_prompt(FILMS[0]), num_inference_steps=6, guidance_scale=3.0, latents=noise, output_type="np"
    ).images[0]
    assert np.abs(found - expected * 255).max() <= 1


def test_sdxl_pooled_embeddings_and_time_ids_are_those_of_the_pipeline(make, folders):
    from diffusers import StableDiffusionXLPipeline

    head = make("sdxl")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    states, blank, pooled, blank_pooled = pipeline.encode_prompt("a house", do_classifier_free_guidance=True)
    found = head.backbone.encode_prompts(["", "a house"])
    assert torch.equal(found.states, torch.cat([blank, states]))
    assert torch.equal(found.added["text_embeds"], torch.cat([blank_pooled, pooled]))
    assert found.added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


@pytest.mark.parametrize("keys", [{}, {"image_injection": "decoupled"}])
def test_the_reward_reaches_the_projector(make, keys):
    head = make(**keys)
    teach(head, 2)
    head.projector.zero_grad()
    images, drift = head.differentiable_images(CARDS, seed=3)
    assert images.shape == (3, 3, head.size, head.size)
    assert images.min() >= 0 and images.max() <= 1
    assert drift > 0
    images.mean().backward()
    gradient = head.projector.mlp[0].weight.grad
    assert gradient.abs().max() > 0
    assert not head.projector.null.grad.any()
    again, _ = head.differentiable_images(CARDS, seed=3)
    assert torch.equal(images, again)


def test_a_reward_can_be_climbed(make):
    head = make()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.0)
    means = []
    for _ in range(15):
        images, _ = head.differentiable_images(CARDS, seed=0)
        means.append(images.mean().item())
        optimizer.zero_grad()
        (-images.mean()).backward()
        optimizer.step()
    assert means[-1] > means[0] + 0.01


def test_equal_requests_of_a_group_get_different_noise(make):
    images, _ = make().differentiable_images([CARDS[0]] * 3, seed=0)
    assert (images[0] - images[1]).abs().mean() > 0.01


def test_tokens_start_as_large_as_text_states(make):
    for pipeline in ("compact", "sdxl"):
        head = make(pipeline)
        states = head.backbone.encode_prompts(["The Usual Suspects (1995). Crime, Thriller."]).states[0, 1:]
        tokens = head.projector(torch.arange(16).unsqueeze(1).expand(-1, 4), torch.ones(16, dtype=torch.bool))
        ratio = tokens.square().mean((0, 2)).sqrt() / states.square().mean().sqrt()
        assert ratio.min() > 0.7 and ratio.max() < 1.4


@pytest.mark.parametrize(("share", "prompts_left"), [("both_dropout", False), ("preference_dropout", True)])
def test_what_is_dropped_gets_the_empty_prompt_and_null_tokens(make, monkeypatch, share, prompts_left):
    head = make(**{"both_dropout": 0.0, "preference_dropout": 0.0, share: 1.0})
    seen, encode = [], head.backbone.encode_prompts
    monkeypatch.setattr(head.backbone, "encode_prompts", lambda prompts: seen.append(prompts) or encode(prompts))
    head.teaching_loss(CARDS, liked_images(head), torch.Generator().manual_seed(0)).backward()
    assert seen == [[image_prompt(card.item) if prompts_left else "" for card in CARDS]]
    assert not head.projector.level.grad.any()
    assert head.projector.null.grad.any()


@pytest.mark.parametrize("keys", [{}, {"image_injection": "decoupled"}, {"image_lora_rank": 2}])
def test_save_and_load(make, tmp_path, keys):
    head = make(**keys)
    teach(head, 3, rate=3e-2)
    head.save(tmp_path / "head")
    assert not list((tmp_path / "head").rglob("*.bin"))
    other = make(seed=5, **keys)
    before = pixels(other.generate(CARDS))
    other.load(tmp_path / "head")
    drawn = pixels(head.generate(CARDS))
    assert np.array_equal(pixels(other.generate(CARDS)), drawn)
    assert not np.array_equal(before, drawn)


def test_a_head_of_another_pipeline_or_a_damaged_one_is_refused(make, tmp_path):
    make("sd15").save(tmp_path)
    with pytest.raises(BundleError, match="unet"):
        make("sd21").load(tmp_path)
    with pytest.raises(BundleError, match="injection"):
        make("sd15", image_injection="decoupled").load(tmp_path)
    weights = tmp_path / "tokens.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="tokens"):
        make("sd15").load(tmp_path)
    (tmp_path / "head.json").unlink()
    with pytest.raises(BundleError, match="head"):
        make("sd15").load(tmp_path)


def test_one_bad_request_does_not_spoil_the_others(make):
    head = make()
    bad = [{"text": (0, 0, 0, 0)}, {"image": (1, 2)}, {"image": (1, 2, 3, 16)}]
    results = head.generate([CARDS[0], *(ImageRequest(FILMS[1], tokens) for tokens in bad), CARDS[1]])
    assert [r.image is None for r in results] == [False, True, True, True, False]
    assert all("image tokens" in r.error for r in results[1:4])
    assert np.abs(pixels([results[0], results[4]]) - pixels(head.generate(CARDS[:2]))).max() <= 1


def test_values_that_stay_nan_are_an_error_on_that_card_alone(make):
    head = make()
    with torch.no_grad():
        head.projector.codes[0, TASTES[1]["image"][0]] = torch.inf
    results = head.generate(CARDS)
    assert [r.image is None for r in results] == [False, True, False]
    assert "NaN" in results[1].error


def test_nan_is_tried_once_more(make):
    head = make()
    calls = []

    def spoil(module, inputs, output):
        calls.append(len(output[0]))
        if len(calls) == 1:
            output[0][1::3] = torch.nan  # the second card, in each of the three branches

    handle = head.backbone.unet.register_forward_hook(spoil)
    results = head.generate(CARDS)
    handle.remove()
    assert [r.error for r in results] == [None] * 3
    assert calls == [9] * 4 + [3] * 4
    assert np.abs(pixels(results)[[0, 2]] - pixels(head.generate(CARDS))[[0, 2]]).max() <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_images_and_gradients(make, dtype):
    grads, drawn = [], []
    for kind in ("float32", dtype):
        head = make("sd15", image_dtype=kind)
        assert head.backbone.unet.dtype == getattr(torch, kind)
        assert all(p.dtype == torch.float32 for p in head.parameters())
        drawn.append(pixels(head.generate(CARDS)))
        images = torch.rand(3, 3, head.size, head.size, generator=torch.Generator().manual_seed(0))
        # as small as the gradient of one pixel of a large image
        (head.teaching_loss(CARDS, images, torch.Generator().manual_seed(1)) * 1e-4).backward()
        grads.append(torch.cat([p.grad.flatten() for p in head.parameters()]))
    assert np.abs(drawn[0] - drawn[1]).mean() < 4
    assert torch.cosine_similarity(*grads, dim=0) > 0.95
    assert 0.8 < grads[1].norm() / grads[0].norm() < 1.25


def test_attention_slicing_changes_memory_only(make):
    for keys in ({}, {"image_injection": "decoupled"}):
        plain, sliced = make("sd15", **keys), make("sd15", attention_slicing=True, **keys)
        assert np.abs(pixels(plain.generate(CARDS)) - pixels(sliced.generate(CARDS))).max() <= 1


def test_a_lora_starts_as_nothing_and_learns(make):
    plain, lora = make(), make(image_lora_rank=2)
    assert np.array_equal(pixels(plain.generate(CARDS)), pixels(lora.generate(CARDS)))
    assert len(lora.parameters()) > len(plain.parameters())
    before = untaught(lora)
    teach(lora, 20)
    assert untaught(lora) < before


def test_prompts_hold_one_line_without_special_tokens():
    hostile = Item("9", "x", "Nice\x00 film\n<|endoftext|> <text_0_17> and " + "long " * 200)
    prompt = image_prompt(hostile)
    assert prompt.startswith("x. Nice film endoftext text_0_17 and long")
    assert len(prompt) <= 300
    assert image_prompt(Item("9", "Heat", "")) == "Heat"
