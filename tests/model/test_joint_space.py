import torch

from recbole_dppmg.model.joint_space import JointSpace, train_joint_space


def pairs(n=400, seed=0):
    """Two views of one latent vector, through different fixed random maps."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 8, generator=generator)
    text = latent @ torch.randn(8, 24, generator=generator)
    image = torch.tanh(latent @ torch.randn(8, 32, generator=generator) / 3)
    return text, image


def test_held_out_pairs_are_found_again():
    _, measured = train_joint_space(*pairs(), epochs=30, seed=1)
    assert measured["retrieval.pairs"] == 40
    assert measured["retrieval.recall@10"] > 0.9  # chance: 10 of 40


def test_unrelated_pairs_stay_at_chance():
    text, image = pairs()
    _, measured = train_joint_space(text, image[torch.randperm(400, generator=torch.Generator().manual_seed(3))], 10, 1)
    assert measured["retrieval.recall@10"] < 0.5


def test_the_same_seed_gives_the_same_space_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, _ = train_joint_space(*pairs(), epochs=2, seed=1)
    second, _ = train_joint_space(*pairs(), epochs=2, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))


def test_round_trip_and_frozen():
    space, _ = train_joint_space(*pairs(), epochs=1, seed=1)
    again = JointSpace.from_tensors(space.tensors())
    x = torch.randn(3, 24)
    assert torch.equal(space("text", x), again("text", x))
    assert not any(p.requires_grad for p in again.parameters())
