import torch

from recbole_dppmg.model.codes import decode, encode, health
from recbole_dppmg.model.quantizer import Quantizer, default_codes


def users(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, 16, generator=generator)
    points = centres[torch.randint(12, (600,), generator=generator)] + 0.4 * torch.randn(600, 16, generator=generator)
    return torch.nn.functional.normalize(points, dim=1)


def learned(vectors: torch.Tensor, **options) -> Quantizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quantizer = Quantizer(16, levels=3, n_codes=16, decay=0.97, **options)
    quantizer.settle(vectors, rounds=30, seed=5)
    return quantizer


def passes(found: dict[str, float]) -> bool:
    """The gate on codebook health."""
    levels = range(3)
    used = all(found[f"utilization.{level}"] >= 0.95 for level in levels)
    return used and all(found[f"perplexity.{level}"] >= 0.6 for level in levels)


def test_gate_passes_with_kmeans_and_reset_and_fails_without():
    vectors = users()
    assert passes(health(encode(vectors, learned(vectors).codebooks), 16))
    assert not passes(health(encode(vectors, learned(vectors, kmeans=False, reset=False).codebooks), 16))


def test_health_by_hand():
    codes = torch.tensor([[0, 1], [0, 1], [1, 1], [1, 0]])
    found = health(codes, 4)
    assert found["utilization.0"] == 0.5
    assert abs(found["perplexity.0"] - 0.5) < 1e-9  # two of four codes, equally often
    assert found["unique"] == 0.5


def test_more_levels_leave_less_over_and_agree_with_the_library():
    vectors = users()
    quantizer = learned(vectors)
    books = quantizer.codebooks
    codes = encode(vectors, books)
    errors = [(vectors - decode(codes[:, :n], books[:n])).pow(2).sum(1).mean().item() for n in range(1, 4)]
    assert errors[0] > errors[1] > errors[2]
    library = quantizer.eval().residual(vectors)
    assert torch.equal(library[1], codes)
    torch.testing.assert_close(library[0], decode(codes, books))


def test_same_seed_same_codebooks_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, second = learned(users()), learned(users())
    assert torch.equal(first.codebooks, second.codebooks)
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_pass_straight_through_and_evaluation_teaches_nothing():
    vectors = users()
    quantizer = learned(vectors).train()
    leaf = vectors.clone().requires_grad_()
    quantized, commitment = quantizer(leaf, seed=1)
    quantized.sum().backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, torch.ones_like(leaf))
    leaf.grad = None
    commitment.backward()
    assert leaf.grad.abs().sum() > 0
    books = quantizer.codebooks.clone()
    encode(users(1), quantizer.eval().codebooks)
    assert torch.equal(books, quantizer.codebooks)


def test_default_number_of_codes():
    assert [default_codes(n) for n in (10, 600, 943, 9_308, 10**6)] == [16, 16, 16, 256, 256]
