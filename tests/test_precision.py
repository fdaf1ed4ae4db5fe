"""bfloat16 only where the processor computes in it."""

import pytest
import torch
from torch import nn

from hybridflow.precision import autocast, computes_in_bfloat16
from hybridflow.training.optimiser import Muon


@pytest.fixture(params=[False, True])
def has_bfloat16(request, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    return request.param


def test_networks_run_in_bfloat16_where_it_is_wanted_and_there(has_bfloat16):
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    assert computes_in_bfloat16("cpu") == has_bfloat16
    with autocast(torch.device("cpu")):
        assert layer(x).dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
    with autocast(torch.device("cpu"), bf16=False):
        assert layer(x).dtype == torch.float32


def test_muon_multiplies_in_what_the_processor_computes_in(has_bfloat16, monkeypatch):
    seen = []

    def zeropower(gradient, *options, dtype=torch.bfloat16, **more):
        seen.append(dtype)
        return gradient

    monkeypatch.setattr("timm.optim.muon.zeropower_via_newtonschulz", zeropower)
    matrix = nn.Parameter(torch.zeros(4, 8))
    matrix.grad = torch.ones(4, 8)
    Muon([matrix]).step()
    assert seen == [torch.bfloat16 if has_bfloat16 else torch.float32]
