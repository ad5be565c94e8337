import torch

from recbole_dppmg.model.losses import alignment_loss, sampled_softmax_loss, softmax_loss


def vectors(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator, dtype=torch.double), dim=1)


def reference(users, items, row, positive, weight, tau, bias):
    table = (users @ items.T / tau + bias).log_softmax(1)[row, positive]
    return -(weight * table.masked_fill(weight == 0, 0)).sum()


def test_softmax_loss_and_its_gradient_are_those_of_log_softmax():
    row, positive = torch.tensor([0, 0, 2, 4]), torch.tensor([1, 3, 6, 2])
    weight = torch.tensor([0.2, 0.5, 0.0, 0.3], dtype=torch.double)
    bias = vectors(7, 2)[:, 0]
    bias[[0, 6]] = -torch.inf  # the third positive takes no part and has no weight
    gradients = []
    for loss in (softmax_loss, reference):
        users, items = vectors(5, 0).requires_grad_(), vectors(7, 1).requires_grad_()
        own = bias.clone().requires_grad_()
        value = loss(users, items, row, positive, weight, 0.2, own)
        value.backward()
        gradients.append((value.detach(), users.grad, items.grad, own.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_sampled_softmax_and_its_gradient_are_those_of_log_softmax_without_known_items():
    row, positive = torch.tensor([0, 0, 2, 1]), torch.tensor([1, 3, 5, 2])
    weight = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.double)
    negatives, log_q = torch.tensor([4, 1, 3, 0]), vectors(4, 3)[:, 0]
    known = torch.zeros(3, 4, dtype=torch.bool)
    known[0, 1] = known[0, 2] = True
    known[1] = True  # nothing left, and no weight
    gradients = []
    for written_out in (False, True):
        users, items = vectors(3, 0).requires_grad_(), vectors(6, 1).requires_grad_()
        bias = vectors(6, 2)[:, 0].clone().requires_grad_()
        if written_out:
            table = users @ items.T / 0.2 + bias
            others = (table[:, negatives] - log_q).masked_fill(known, -torch.inf)[row]
            own = table[row, positive].unsqueeze(1)
            value = -(weight * torch.cat([own, others], 1).log_softmax(1)[:, 0]).sum()
        else:
            value = sampled_softmax_loss(users, items, row, positive, weight, 0.2, bias, negatives, log_q, known)
        value.backward()
        gradients.append((value.detach(), users.grad, items.grad, bias.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_alignment_is_least_for_equal_views_and_ignores_repeated_items():
    first = vectors(6, 0)
    items = torch.tensor([1, 2, 3, 4, 5, 5])
    first[5] = first[4]
    equal = alignment_loss(first, first, items)
    other = alignment_loss(first, vectors(6, 3), items)
    assert equal < other
    assert equal < alignment_loss(first, first, torch.arange(6))  # there the twins push each other away
