import pytest
import torch

from recbole_dppmg.runs import repeat_exactly


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    repeat_exactly(False)


def test_gradients_of_indexing_are_summed_in_a_fixed_order(two_threads):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(40, (100_000,), generator=generator)
    weight = torch.randn(100_000, 8, generator=generator)

    def gradient():
        table = torch.zeros(40, 8, requires_grad=True)
        (table[rows] * weight).sum().backward()
        return table.grad

    repeat_exactly(True)
    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(20))
