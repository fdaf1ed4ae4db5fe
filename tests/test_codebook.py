"""The quantiser: nearest codewords, gradients that pass, and a codebook that follows its inputs and stays in use."""

import pytest
import torch

from hybridflow.codebook import Codebook
from hybridflow.draws import Draws

DRAWS = Draws(0, 0, torch.arange(1))


@pytest.fixture
def codebook():
    torch.manual_seed(0)
    return Codebook(16, 4)


def as_map(vectors):
    """(N,C) -> (1,C,1,N)."""
    return vectors.T[None, :, None]


def test_nearest_is_what_brute_force_finds(codebook):
    vectors = torch.randn(200, 4)
    brute = torch.stack([(codebook.codewords - vector).square().sum(1).argmin() for vector in vectors])
    assert (codebook.nearest(vectors) == brute).all()
    assert (codebook.nearest(codebook.codewords) == torch.arange(16)).all()


def test_nearest_is_found_in_float32_under_autocast():
    torch.manual_seed(0)
    codebook, vectors = Codebook(1024, 32), torch.randn(500, 32)
    nearest = codebook.nearest(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.nearest(vectors), nearest)


def test_quantising_gives_codewords_and_their_distance(codebook):
    y = torch.randn(2, 4, 3, 5)
    codes, indices, commitment = codebook.eval()(y)
    assert indices.shape == (2, 3, 5) and indices.dtype == torch.int64
    torch.testing.assert_close(codes, codebook.lookup(indices))
    assert (codes[1, :, 2, 4] - codebook.codewords[indices[1, 2, 4]]).abs().max() < 1e-6
    torch.testing.assert_close(commitment, (y - codes).square().mean())


def test_the_gradient_passes_straight_through(codebook):
    y = torch.randn(1, 4, 2, 2, requires_grad=True)
    weights = torch.randn(1, 4, 2, 2)
    codes, _, commitment = codebook(y, DRAWS)
    (codes * weights).sum().backward()
    torch.testing.assert_close(y.grad, weights)
    y.grad = None
    codes, _, commitment = codebook.eval()(y)
    commitment.backward()
    torch.testing.assert_close(y.grad, 2 * (y - codes).detach() / y.numel())


def test_k_means_finds_the_clusters(codebook):
    centres = 10 * torch.randn(16, 4)
    vectors = (centres[:, None] + 0.1 * torch.randn(16, 100, 4)).flatten(0, 1)
    codebook.start(vectors, DRAWS)
    assert codebook.started
    own = torch.cdist(vectors, codebook.codewords).min(1).values.square().mean()
    random = torch.cdist(vectors, vectors[torch.randperm(len(vectors))[:16]]).min(1).values.square().mean()
    assert own < 0.7 * random
    before = codebook.codewords.clone()
    codebook._follow(vectors, codebook.nearest(vectors), DRAWS)
    used = torch.bincount(codebook.nearest(vectors), minlength=16) > 0
    assert (codebook.codewords - before)[used].norm(dim=1).max() < 0.5  # k-means and averages agree


def test_k_means_wants_enough_vectors(codebook):
    with pytest.raises(ValueError, match="16"):
        codebook.start(torch.randn(15, 4), DRAWS)


def test_codewords_follow_the_mean_of_what_chose_them(codebook):
    codebook.start(torch.randn(400, 4), DRAWS)
    start = codebook.codewords.clone()
    target = start + 0.05
    for _ in range(400):
        codebook(as_map(target.repeat(8, 1)), DRAWS)
    assert (codebook.codewords - target).norm() < 0.1 * (start - target).norm()


def test_one_step_moves_by_the_decay(codebook):
    codebook.average_count.fill_(1)
    codebook.average_sum.copy_(codebook.codewords)
    first = codebook.codewords[3].clone()
    codebook(as_map((first + 0.01).expand(1, 4)), DRAWS)
    expected = (0.99 * first + 0.01 * (first + 0.01)) / (0.99 * 1 + 0.01 * 1)
    torch.testing.assert_close(codebook.codewords[3], expected)


def test_dead_codewords_restart_until_all_are_used(codebook):
    codebook.codewords[1:] += 100  # nothing will ever choose these
    codebook.average_sum.copy_(codebook.codewords)
    for _ in range(600):
        codebook(as_map(torch.randn(256, 4)), DRAWS)
    chosen = codebook.nearest(torch.randn(2000, 4))
    assert len(chosen.unique()) >= 15


def test_nothing_moves_in_eval_mode(codebook):
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    codebook.eval()(torch.randn(2, 4, 8, 8))
    assert all((codebook.state_dict()[name] == value).all() for name, value in before.items())


def test_the_expected_codeword(codebook):
    indices = torch.randint(16, (2, 3, 5))
    logits = 1e4 * torch.nn.functional.one_hot(indices, 16).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(codebook.expected(logits), codebook.lookup(indices))
    even = codebook.expected(torch.zeros(1, 16, 1, 1)).flatten()
    torch.testing.assert_close(even, codebook.codewords.mean(0))
    logits = torch.randn(1, 16, 2, 2, requires_grad=True)
    codebook.expected(logits).square().sum().backward()
    assert logits.grad.abs().min() > 0


def test_inputs_that_are_not_finite_move_nothing(codebook):
    codebook.start(torch.randn(400, 4), DRAWS)
    before = codebook.codewords.clone()
    codebook(as_map(torch.tensor([[1.0, 2.0, torch.nan, 3.0]])), DRAWS)
    torch.testing.assert_close(codebook.codewords, before)


def test_a_restarted_codeword_is_an_input_of_the_batch(codebook):
    inputs = torch.randn(256, 4)
    codebook.average_sum.copy_(codebook.codewords)
    codebook.average_count[3] = 1e-6
    codebook.codewords[3] = 1e3
    codebook(as_map(inputs), DRAWS)
    assert (inputs - codebook.codewords[3]).abs().amax(1).min() < 1e-5


def test_inputs_that_are_not_finite_restart_no_codeword(codebook):
    codebook.average_sum.copy_(codebook.codewords)
    codebook.average_count[3] = 1e-6
    before = codebook.average_count.clone()
    codebook(torch.full((1, 4, 1, 5), torch.nan), DRAWS)
    assert codebook.average_sum.isfinite().all() and torch.equal(codebook.average_count, before)


def test_k_means_of_equal_vectors_leaves_no_codeword_without_a_value(codebook):
    codebook.start(torch.ones(40, 4), DRAWS)
    assert codebook.codewords.isfinite().all() and codebook.average_sum.isfinite().all()


def test_perplexity_is_the_number_of_codewords_in_even_use(codebook):
    assert float(codebook.perplexity) == pytest.approx(16)
    codebook.average_count[4:] = 0
    assert float(codebook.perplexity) == pytest.approx(4)
