"""Muon for hidden layers, AdamW for the rest."""

import pytest
import timm.optim.muon
import torch
from conftest import SMALL
from torch import nn

from hybridflow.model import HybridFlow
from hybridflow.training.optimiser import ADAMW_SHARE, WEIGHT_DECAY, Muon, hidden_weights, optimisers

RATE = 0.01


def moved(parameters, hidden, steps=1):
    """How steps along the same gradient change each parameter."""
    before = [parameter.detach().clone() for parameter in parameters]
    (optimiser,) = optimisers(parameters, hidden)
    for group in optimiser.param_groups:
        group["lr"] = group["share"] * RATE
    for _ in range(steps):
        optimiser.step()
    return [parameter.detach() - was for parameter, was in zip(parameters, before)]


def with_gradient(*shape):
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape)
    return parameter


def test_hidden_are_layers_that_end_in_neither_colours_nor_codewords():
    model = HybridFlow(SMALL)
    hidden = hidden_weights(model, SMALL.num_codes)
    outputs = [model.pixel_decoder.head[-1], model.predictor.out, model.index_prior.out[-1]]
    tables = [model.predictor.embedding, model.index_prior.embedding]
    assert not hidden & {layer.weight for layer in outputs + tables}
    inner = [model.pixel_decoder.head[3], model.correction.joins[0], model.predictor.blocks[0].feed_forward[0]]
    assert hidden >= {layer.weight for layer in inner}
    names = {name for name, parameter in model.named_parameters() if parameter in hidden}
    assert all(name.endswith(".weight") for name in names)
    assert not [name for name in names if "quality" in name or "norm" in name]


def test_a_convolution_with_as_many_outputs_as_there_are_codewords_is_hidden():
    layer = nn.Conv2d(4, 16, 3)
    assert hidden_weights(layer, 16) == {layer.weight}


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (16, 8, 3, 3)])
def test_a_hidden_matrix_moves_in_all_directions_alike_and_by_as_much_as_by_adamw(shape):
    torch.manual_seed(0)
    matrix = with_gradient(*shape)
    (change,) = moved([matrix], {matrix})
    values = torch.linalg.svdvals(change.flatten(1))
    assert values.max() < 2 * values.min()  # of the gradient: 3 to 6 times
    assert (matrix.grad.flatten(1) * change.flatten(1)).sum() < 0
    assert float(change.square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=0.3)


def test_matrices_of_one_shape_move_together_as_they_do_alone():
    torch.manual_seed(0)
    shapes = [(16, 8, 3, 3), (16, 72), (24, 96), (16, 8, 3, 3)]
    matrices = [with_gradient(*shape) for shape in shapes]
    alone = [moved([matrix], {matrix}, steps=3)[0] for matrix in matrices]
    timms = timm.optim.muon.Muon(matrices, lr=RATE, weight_decay=0.01, nesterov=True)
    for matrix in matrices:
        matrix.data.zero_()
    for together, change in zip(moved(matrices, set(matrices), steps=3), alone):
        torch.testing.assert_close(together, change, atol=1e-4, rtol=0)
    for matrix in matrices:
        matrix.data.zero_()
    for _ in range(3):
        timms.step()
    for matrix, change in zip(matrices, alone):
        torch.testing.assert_close(matrix.detach(), change, atol=2e-3, rtol=0)


def test_the_order_of_channels_in_memory_changes_nothing():
    torch.manual_seed(0)
    plain = [with_gradient(*shape) for shape in [(16, 8, 3, 3), (24, 16, 1, 1)]]
    last = [nn.Parameter(torch.zeros_like(matrix).to(memory_format=torch.channels_last)) for matrix in plain]
    for layout in (torch.contiguous_format, torch.channels_last):
        for matrix, twin in zip(plain, last):
            matrix.data.zero_()
            twin.data.zero_()
            twin.grad = matrix.grad.to(memory_format=layout)
        for change, other in zip(moved(plain, set(plain), steps=3), moved(last, set(last), steps=3)):
            torch.testing.assert_close(other, change, atol=1e-4, rtol=0)
            assert change.abs().max() > 1e-3


def test_a_weight_without_a_gradient_stays_and_state_is_kept():
    torch.manual_seed(0)
    still, matrix = nn.Parameter(torch.ones(4, 8)), with_gradient(4, 8)
    first = Muon([{"params": [still, matrix], "lr": RATE}])
    first.step()
    assert torch.equal(still, torch.ones(4, 8)) and matrix.abs().min() > 0
    second = Muon([{"params": [still, matrix], "lr": RATE}])
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[matrix]["momentum"], first.state[matrix]["momentum"])


def test_everything_else_moves_by_adamw_at_its_share():
    torch.manual_seed(0)
    bias = with_gradient(32)
    (change,) = moved([bias], set(), steps=40)
    torch.testing.assert_close(change.sign(), -bias.grad.sign())
    assert float(change.abs().mean()) == pytest.approx(40 * ADAMW_SHARE * RATE, rel=0.1)


def test_weights_decay_by_their_rate():
    for hidden, share in ((True, 1.0), (False, ADAMW_SHARE)):
        weight = torch.nn.Parameter(torch.ones(4, 8))
        weight.grad = torch.zeros(4, 8)
        (optimiser,) = optimisers([weight], {weight} if hidden else set())
        (group,) = optimiser.param_groups
        group["lr"] = group["share"] * RATE
        optimiser.step()
        expected = torch.full((4, 8), share * RATE * WEIGHT_DECAY)
        torch.testing.assert_close(1 - weight.detach(), expected, rtol=1e-2, atol=0)


def test_adamw_moves_as_much_however_small_the_gradient():
    torch.manual_seed(0)
    bias = with_gradient(32)
    bias.grad = 1e-5 * bias.grad.sign()
    (change,) = moved([bias], set(), steps=40)
    assert float(change.abs().mean()) == pytest.approx(40 * ADAMW_SHARE * RATE, rel=0.1)


def test_muon_looks_ahead_as_timms_does():
    torch.manual_seed(0)
    gradients, found = torch.randn(3, 24, 96), []
    makers = (
        lambda w: Muon([{"params": [w], "lr": RATE}]),
        lambda w: timm.optim.muon.Muon([w], lr=RATE, weight_decay=WEIGHT_DECAY, nesterov=True),
    )
    for make in makers:
        weight = torch.nn.Parameter(torch.zeros(24, 96))
        optimiser = make(weight)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimiser.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found, atol=2e-3, rtol=0)
