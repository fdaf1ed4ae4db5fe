"""Muon for hidden layers, AdamW for the rest."""

import pytest
import torch
from conftest import SMALL
from torch import nn

from hybridflow.model import HybridFlow
from hybridflow.training.optimiser import ADAMW_SHARE, hidden_weights, muon

RATE = 0.01


def moved(parameters, hidden, steps=1):
    """How steps along the same gradient change each parameter."""
    before = [parameter.detach().clone() for parameter in parameters]
    optimiser = muon(parameters, hidden)
    for group in optimiser.param_groups:
        group["lr"] = RATE
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
    assert not [name for name in names if "entropy_bottleneck" in name or "norm" in name]


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (16, 8, 3, 3)])
def test_a_hidden_matrix_moves_in_all_directions_alike_and_by_as_much_as_by_adamw(shape):
    torch.manual_seed(0)
    matrix = with_gradient(*shape)
    (change,) = moved([matrix], {matrix})
    values = torch.linalg.svdvals(change.flatten(1))
    assert values.max() < 2 * values.min()  # of the gradient: 3 to 6 times
    assert (matrix.grad.flatten(1) * change.flatten(1)).sum() < 0
    assert float(change.square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=0.3)


def test_everything_else_moves_by_adamw_at_its_share():
    torch.manual_seed(0)
    bias = with_gradient(32)
    (change,) = moved([bias], set(), steps=40)
    torch.testing.assert_close(change.sign(), -bias.grad.sign())
    assert float(change.abs().mean()) == pytest.approx(40 * ADAMW_SHARE * RATE, rel=0.1)
