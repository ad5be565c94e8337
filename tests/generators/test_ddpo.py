"""Denoising as a policy, on tiny real pipelines."""

import doctest

import pytest
import tiny_pipelines
import torch
from torch.distributions import Normal

from recbole_dppmg.generators import ddpo
from recbole_dppmg.generators.diffusion import DiffusionHead
from recbole_dppmg.settings import Settings
from recbole_dppmg.types import ImageRequest, Item

CODEBOOKS = {m: torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(3)) for m in ("text", "image")}
FILM = Item("1", "Heat", "Heat (1995). Action, Crime.", ("Action", "Crime"), 1995)
CARDS = [ImageRequest(FILM, {"image": codes}) for codes in ((1, 2, 3, 4), (1, 2, 3, 4), (9, 8, 7, 6))]


@pytest.fixture(scope="module", params=["compact", "sd15"])
def head(request, tmp_path_factory):
    save = {"compact": tiny_pipelines.save_compact, "sd15": tiny_pipelines.save_sd}[request.param]
    folder = save(tmp_path_factory.mktemp("pipelines") / request.param)
    return DiffusionHead(str(folder), CODEBOOKS, Settings(sampling_steps=5, image_injection="concat"), 0)


def test_examples():
    assert doctest.testmod(ddpo).failed == 0


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_step_is_that_of_diffusers(kind):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="scaled_linear")
    scheduler.set_timesteps(10)
    prediction, latents, noise = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, after = scheduler.timesteps[4:6]
    expected = scheduler.step(prediction, t, latents, eta=1.0, variance_noise=noise).prev_sample
    alphas = scheduler.alphas_cumprod
    mean, std = ddpo.ddim_step(prediction, latents, alphas[t], alphas[after], kind)
    torch.testing.assert_close(mean + std * noise, expected)


def test_density_is_that_of_a_gaussian():
    x, mean = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = Normal(mean, torch.tensor(0.3)).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(ddpo.log_density(x, mean, torch.tensor(0.3)), expected)


def test_a_walk(head):
    policy = ddpo.DenoisingPolicy(head)
    walk = policy.walk(CARDS, seed=3)
    assert walk.images.shape == (3, 3, head.size, head.size)
    assert walk.images.min() >= 0 and walk.images.max() <= 1
    assert walk.latents.shape[:2] == (5, 3) and walk.plain.shape[:3] == (2, 4, 3)
    assert (walk.images[0] - walk.images[1]).abs().mean() > 0.01  # equal requests, other noise
    assert torch.equal(walk.images, policy.walk(CARDS, seed=3).images)
    assert not torch.equal(walk.images, policy.walk(CARDS, seed=4).images)


def test_draws_are_standard_gaussian_under_the_tokens_they_were_made_with(head):
    """Hence their mean log-density is -1/2 - log std - log(2 pi)/2, and less under any other tokens."""
    policy = ddpo.DenoisingPolicy(head)
    walk = policy.walk(CARDS * 8, seed=3)
    for step in range(4):
        found, drift = policy.log_probs(walk, step)
        std = ddpo.ddim_step(walk.latents[0], walk.latents[0], policy._alphas[step], policy._after[step], "sample")[1]
        expected = -0.5 - std.log() - torch.tensor(2 * torch.pi).log() / 2
        assert found.mean().item() == pytest.approx(expected.item(), abs=0.03)
        assert drift > 0
    walk.requests = [ImageRequest(FILM, {"image": (15, 14, 13, 12)})] * len(walk.requests)
    assert policy.log_probs(walk, 2)[0].mean() < policy.log_probs(policy.walk(CARDS * 8, seed=3), 2)[0].mean()


def test_gradient_reaches_the_tokens_only(head):
    policy = ddpo.DenoisingPolicy(head)
    policy.log_probs(policy.walk(CARDS, seed=0), 1)[0].sum().backward()
    assert head.projector.mlp[0].weight.grad.abs().max() > 0
    assert head.projector.null.grad is None or not head.projector.null.grad.any()
    assert all(parameter.grad is None for parameter in head.backbone.unet.parameters())
