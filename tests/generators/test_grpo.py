import pytest
import torch

from recbole_dppmg.generators.grpo import grpo_loss

MASK = torch.tensor([[True, True, False], [True, False, False]])


def logp(seed):
    return -torch.rand(2, 3, generator=torch.Generator().manual_seed(seed)) - 0.1


def test_gradient_raises_what_was_better_than_its_group():
    new = logp(1).requires_grad_()
    grpo_loss(new, new.detach(), new.detach(), torch.tensor([1.0, -1.0]), MASK, kl=0.0).backward()
    expected = torch.tensor([[-1 / 3, -1 / 3, 0], [1 / 3, 0, 0]])
    torch.testing.assert_close(new.grad, expected)


@pytest.mark.parametrize(
    ("advantage", "step", "flat"), [(1.0, 0.3, True), (1.0, 0.2, False), (-1.0, -0.3, True), (-1.0, 0.3, False)]
)
def test_what_is_clipped_has_no_gradient(advantage, step, flat):
    """Above 1.28 a better text gains no more; below 0.8 a worse one loses no more."""
    old = torch.full((1, 1), -1.0)
    new = (old + step).requires_grad_()
    grpo_loss(new, old, old, torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool), kl=0.0).backward()
    assert (new.grad == 0).item() == flat


def test_divergence_is_that_of_the_sampled_tokens():
    new, reference = logp(1), logp(2)
    found = grpo_loss(new, new, reference, torch.zeros(2), MASK, kl=1.0)
    distance = (reference - new)[MASK]
    torch.testing.assert_close(found, (distance.exp() - distance - 1).mean())
    assert found > 0
    assert grpo_loss(new, new, new, torch.zeros(2), MASK, kl=1.0) == 0


def test_divergence_pulls_towards_the_reference():
    new, reference = logp(1).requires_grad_(), logp(2)
    grpo_loss(new, new.detach(), reference, torch.zeros(2), MASK, kl=1.0).backward()
    assert (torch.sign(new.grad) == torch.sign(new.detach() - reference) * MASK).all()


def test_padding_counts_for_nothing_whatever_stands_there():
    new = logp(1)
    plain = grpo_loss(new, logp(2), logp(3), torch.tensor([1.0, -2.0]), MASK)
    padded = [t.masked_fill(~MASK, torch.inf).requires_grad_() for t in (new, logp(2), logp(3))]
    found = grpo_loss(*padded, torch.tensor([1.0, -2.0]), MASK)
    found.backward()
    assert torch.equal(found, plain)
    assert torch.isfinite(padded[0].grad).all()


def test_a_group_that_wrote_nothing():
    assert grpo_loss(logp(1), logp(1), logp(1), torch.ones(2), torch.zeros_like(MASK)) == 0
