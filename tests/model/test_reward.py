import doctest

import torch

from recbole_dppmg.model import reward


def test_examples():
    assert doctest.testmod(reward).failed == 0


def test_what_pleases_everyone_is_not_personal():
    generator = torch.Generator().manual_seed(0)
    users = torch.nn.functional.normalize(torch.randn(64, 8, generator=generator) + 2, dim=-1)
    everyone, own = users.mean(0), users[0] - users.mean(0)
    content = torch.nn.functional.normalize(torch.stack([everyone, own]), dim=-1)
    general, personal = reward.personalization(content, users[0], users)
    assert content[0] @ users[0] > content[1] @ users[0]  # although it scores higher for this user
    assert personal > general


def test_consistency_is_of_both_groups_and_symmetric():
    generator = torch.Generator().manual_seed(1)
    texts, images = torch.nn.functional.normalize(torch.randn(2, 3, 4, 8, generator=generator), dim=-1)
    of_texts, of_images = reward.consistency(texts, images)
    swapped_images, swapped_texts = reward.consistency(images, texts)
    torch.testing.assert_close(of_texts, swapped_texts)
    torch.testing.assert_close(of_images, swapped_images)
    torch.testing.assert_close(of_texts.mean(-1), of_images.mean(-1))


def test_terms_of_any_scale_weigh_the_same():
    generator = torch.Generator().manual_seed(2)
    p, c = torch.randn(2, 3, 8, generator=generator)
    one = reward.combine({"p": p, "c": c}, {"p": 1.0, "c": 0.5})
    torch.testing.assert_close(one, reward.combine({"p": 100 * p + 7, "c": 0.01 * c}, {"p": 1.0, "c": 0.5}))
    torch.testing.assert_close(one.mean(-1), torch.zeros(3), atol=1e-5, rtol=0)


def test_a_group_of_equals_gives_no_reward_and_no_nan():
    equal = torch.full((2, 4), 0.3, requires_grad=True)
    total = reward.combine({"p": equal}, {"p": 1.0})
    assert total.abs().max().item() < 1e-6
    total.sum().backward()
    assert torch.isfinite(equal.grad).all()


def test_gradients_reach_the_content():
    generator = torch.Generator().manual_seed(3)
    content = torch.randn(2, 4, 8, generator=generator).requires_grad_()
    user, others = torch.randn(2, 8, generator=generator), torch.randn(2, 16, 8, generator=generator)
    terms = {"p": reward.personalization(content, user, others), "a": reward.fidelity(content, user)}
    reward.combine(terms, {"p": 1.0, "a": 0.3}).sum().backward()
    assert (content.grad.abs().sum(-1) > 0).all()
