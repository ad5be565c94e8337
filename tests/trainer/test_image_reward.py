"""Rewards of a user's own, and images that learn from them with and without a gradient."""

import importlib
import sys

import pytest
import tiny_pipelines
import torch

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.generators.diffusion import DiffusionHead
from recbole_dppmg.model.reward import normalise
from recbole_dppmg.settings import RewardSettings, Settings
from recbole_dppmg.trainer.image_reward import DDPO, ReFL
from recbole_dppmg.trainer.reward_function import RewardFunction
from recbole_dppmg.types import ImageRequest, Item

CODEBOOKS = {m: torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(3)) for m in ("text", "image")}
ITEMS = [Item("1", "Heat", "Heat (1995). Action."), Item("2", "Emma", "Emma (1996). Drama.")]
REQUESTS = [ImageRequest(item, {"image": (1, 2, 3, 4)}) for item in ITEMS for _ in range(8)]

FUNCTIONS = """
import torch

def bright(modality, contents, items, tokens):
    if modality == "image":
        return (contents > 0.5).float().mean((1, 2, 3)).tolist()

def towards(modality, contents, items, tokens):
    return ((contents - START) * WAY).sum((1, 2, 3)).mul(50).round().tolist()

def smooth(modality, contents, items, tokens):
    return contents.mean((1, 2, 3)) if modality == "image" else [float(len(text)) for text in contents]

def of_the_item(modality, contents, items, tokens):
    return [float(len(item.title) + len(user[modality])) for item, user in zip(items, tokens, strict=True)]

def raises(modality, contents, items, tokens):
    raise RuntimeError("no such scorer")

def one_less(modality, contents, items, tokens):
    return [0.0] * (len(contents) - 1)

def nan(modality, contents, items, tokens):
    return [0.0] * (len(contents) - 1) + [float("nan")]

def words(modality, contents, items, tokens):
    return ["good"] * len(contents)

NUMBER = 3
"""


@pytest.fixture(scope="module", autouse=True)
def functions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "my_rewards.py").write_text(FUNCTIONS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("my_rewards", None)


@pytest.fixture
def head(tmp_path):
    folder = tiny_pipelines.save_sd(tmp_path / "sd")
    keys = {"sampling_steps": 3, "image_injection": "concat", "guidance_text": 2.0, "guidance_preference": 2.0}
    return DiffusionHead(str(folder), CODEBOOKS, Settings(**keys), 0)


def optimizer_of(head, rate=3e-3):
    return torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)


def nothing():
    return torch.zeros((), requires_grad=True)


def test_a_reward_without_gradient_rises(head):
    """Of how far images go the way that another user's tokens would take them, in whole steps."""
    learner = DDPO(head, optimizer_of(head, 1e-3), drift=0.0)
    frozen = {name: value.clone() for name, value in head.backbone.unet.state_dict().items()}
    card = ImageRequest(ITEMS[0], {"image": (1, 2, 3, 4)})
    other = ImageRequest(ITEMS[0], {"image": (9, 8, 7, 6)})

    def images_of(request):
        return torch.cat([learner.policy.walk([request] * 8, seed).images for seed in range(1000, 1006)])

    before = images_of(card)
    way = (images_of(other) - before).mean(0)
    my_rewards = sys.modules.get("my_rewards") or importlib.import_module("my_rewards")
    my_rewards.WAY, my_rewards.START = way / way.norm(), before.mean(0)
    reward = RewardFunction("my_rewards:towards", gradient=False)

    def mean_reward(images):
        return reward("image", images, [card.item] * len(images), [card.tokens] * len(images)).mean().item()

    possible = mean_reward(images_of(other)) - mean_reward(before)
    for step in range(9):
        images = learner.draw([card] * 32, seed=step)
        assert not images.requires_grad
        values = reward("image", images, [card.item] * 32, [card.tokens] * 32)
        learner.learn(normalise(values), nothing)
    assert mean_reward(images_of(card)) - mean_reward(before) > 0.2 * possible > 0
    assert all(torch.equal(value, frozen[name]) for name, value in head.backbone.unet.state_dict().items())


def test_a_reward_that_says_the_same_of_all_moves_nothing_but_by_drift(head):
    learner = DDPO(head, optimizer_of(head), drift=0.0)
    before = [parameter.detach().clone() for parameter in head.parameters()]
    learner.draw(REQUESTS, seed=0)
    drift = learner.learn(torch.zeros(len(REQUESTS)), nothing)
    assert drift > 0
    for parameter, old in zip(head.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old, atol=1e-6, rtol=0)


def test_ddpo_needs_draws(tmp_path):
    head = DiffusionHead(str(tiny_pipelines.save_compact(tmp_path / "one")), CODEBOOKS, Settings(sampling_steps=1), 0)
    with pytest.raises(ConfigError, match="sampling_steps"):
        DDPO(head, optimizer_of(head), 0.0)


def test_a_gradient_is_followed_where_there_is_one(head):
    function = RewardFunction("my_rewards:smooth", gradient=True)
    function.check(ITEMS, 4)
    learner = ReFL(head, optimizer_of(head), drift=0.0)
    seen = []
    for _ in range(10):
        rewards = function("image", learner.draw(REQUESTS, 0), ITEMS * 8, [r.tokens for r in REQUESTS])
        seen.append(rewards.mean().item())
        learner.learn(rewards, nothing)
    assert seen[-1] > seen[0] + 0.005, seen


def test_what_a_function_is_given_and_gives():
    texts = ["a", "bcd"]
    users = [{"text": (0,) * 4, "image": (1,) * 4}] * 2
    assert RewardFunction("my_rewards:smooth", True)("text", texts, ITEMS, users).tolist() == [1.0, 3.0]
    assert RewardFunction("my_rewards:of_the_item", True)("text", texts, ITEMS, users).tolist() == [8.0, 8.0]
    assert RewardFunction("my_rewards:bright", False)("text", texts, ITEMS, users) is None
    assert RewardFunction.of(RewardSettings()) is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("my_rewards", "is not pkg.mod:function"),
        ("no_such_module:f", "cannot be imported"),
        ("my_rewards:absent", "cannot be imported"),
        ("my_rewards:NUMBER", "is no function"),
        ("my_rewards:raises", r"on texts raised RuntimeError: no such scorer"),
        ("my_rewards:one_less", r"on texts gave shape \(1,\) for 2"),
        ("my_rewards:nan", "on texts gave nan for number 1"),
        ("my_rewards:words", "on texts raised"),
        ("my_rewards:bright", "on images gave no gradient; set image_reward: ddpo"),
    ],
)
def test_a_function_that_cannot_be_used_is_told_before_the_work(path, said):
    with pytest.raises(ConfigError, match=f"reward_function: '{path}.*{said}|reward_function: '{path}' {said}"):
        RewardFunction.of(RewardSettings(reward_function=path)).check(ITEMS, 4)


def test_one_without_gradient_does_for_ddpo():
    RewardFunction.of(RewardSettings(reward_function="my_rewards:bright", image_reward="ddpo")).check(ITEMS, 4)
