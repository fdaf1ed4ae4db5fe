"""Random numbers keyed by sample: even, independent, and the same however a batch is split."""

import torch

from hybridflow.draws import Draws


def test_a_split_batch_draws_what_the_whole_one_draws():
    whole, parts = Draws(3, 5, torch.arange(8)), [Draws(3, 5, torch.arange(a, a + 4)) for a in (0, 4)]
    for shape in ((), (3, 2), (1,)):
        assert torch.equal(whole.uniform(*shape), torch.cat([part.uniform(*shape) for part in parts]))
        shared = whole.shared(*shape)
        assert shared.shape == shape and all(torch.equal(shared, part.shared(*shape)) for part in parts)


def test_numbers_are_even():
    numbers = Draws(0, 0, torch.arange(-50, 50)).uniform(1000)
    assert numbers.min() >= 0 and numbers.max() < 1 and numbers.dtype == torch.float32
    counts = torch.histc(numbers, 20, 0, 1)
    assert (counts - 5000).abs().max() < 5 * 5000**0.5
    integers = Draws(0, 0, torch.arange(3000)).integers(3)
    assert integers.dtype == torch.int64 and (torch.bincount(integers) - 1000).abs().max() < 150


def test_seeds_samples_calls_and_elements_are_independent():
    draws, other = Draws(0, 0, torch.arange(200)), Draws(1, 0, torch.arange(200))
    first, second, third = draws.uniform(200), draws.uniform(200), other.uniform(200)
    neighbours = (first[1:].flatten(), first[:, 1:].flatten(), second.flatten(), third.flatten())
    for numbers in neighbours:
        pair = torch.stack([first.flatten()[: len(numbers)], numbers])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.03
    for one, next_one in ((first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        pair = torch.stack([one.flatten(), next_one.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.03
    assert not torch.equal(Draws(0, 0, torch.arange(1)).shared(9), Draws(0, 1, torch.arange(1)).shared(9))


def test_what_a_step_shares_depends_on_the_seed():
    assert not torch.equal(Draws(0, 0, torch.arange(1)).shared(9), Draws(1, 0, torch.arange(1)).shared(9))


def test_what_a_step_shares_is_new_at_every_call_and_no_samples_own():
    draws = Draws(0, 5, torch.arange(5, 6))
    first, second = draws.shared(9), draws.shared(9)
    assert not torch.equal(first, second)
    assert not torch.equal(Draws(0, 5, torch.arange(5, 6)).uniform(9)[0], first)


def test_the_highest_number_is_below_one(monkeypatch):
    monkeypatch.setattr("hybridflow.draws._mix", lambda x: 0 * x + 0xFFFFFFFF)
    draws = Draws(0, 0, torch.arange(2))
    assert draws.uniform(3).max() < 1 and draws.integers(6, 3).max() == 5
